"""The tracker's work per message doesn't grow with the fleet: counted in executed lines, not in time."""

from __future__ import annotations

import random
import sys
from collections import defaultdict

import pytest
from tracker_driver import REGISTRY, bitmap, digest, node_id

from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import PeerInfo
from tracker.cluster import Cluster
from tracker.rules import BanRules, ContentRules, SwarmRules

LAYERS = [digest(f"layer-{number}") for number in range(10)]
SIZE = 52 * 64 * 1024
TAG = f"tag {REGISTRY}/library/thing:1"


class Lines:
    """Counts executed lines, by what was being done; of every `sample`-th time (tracing is slow)."""

    def __init__(self, sample: int) -> None:
        self._sample = sample
        self._calls: dict[str, int] = defaultdict(int)
        self.lines: dict[str, int] = defaultdict(int)
        self.times: dict[str, int] = defaultdict(int)
        self._what = ""

    def _trace(self, frame, event, argument):
        if event == "line":
            self.lines[self._what] += 1
        return self._trace

    def run(self, what: str, call, *arguments):
        self._what = what
        self._calls[what] += 1
        if self._calls[what] % self._sample:
            return call(*arguments)
        self.times[what] += 1
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return call(*arguments)
        finally:
            sys.settrace(before)

    def each(self) -> dict[str, float]:
        return {what: self.lines[what] / self.times[what] for what in self.times}


class Fleet:
    """`count` agents that pull an image of ten layers together, through all they say to a tracker."""

    def __init__(self, count: int) -> None:
        self.now = 1000.0
        self.lines = Lines(max(1, count // 500))
        self.cluster = Cluster(SwarmRules(settle_window=0.0), ContentRules(), BanRules(), random.Random(1), self.now)
        self.count = count
        self.sent = 0
        self.leases: list[tuple[bytes, wire.Lease]] = []

    def say(self, node: bytes, message: wire.FromAgent) -> None:
        self.now += 1e-5
        out = self.lines.run(type(message).__name__, self.cluster.handle, self.now, node, message)
        self.sent += len(out)
        self.leases += [(to, said) for to, said in out if isinstance(said, wire.Lease)]

    def tick(self) -> None:
        out = self.cluster.tick(self.now)
        self.leases += [(to, said) for to, said in out if isinstance(said, wire.Lease)]

    def roll_out(self) -> None:
        wants = [wire.Want(layer, SIZE, 64 * 1024) for layer in LAYERS]
        nodes = [node_id(number) for number in range(self.count)]
        for node in nodes:
            self.lines.run("connect", self.cluster.connected, self.now, PeerInfo(node, "h", 1), "h")
            self.say(node, wire.Holds([digest("old")]))
            self.say(node, wire.Ask(1, TAG))
            self.say(node, wire.Join(digest("image"), REGISTRY, wants))
        read = 0
        while read < len(self.leases):
            node, lease = self.leases[read]
            read += 1
            assert not lease.alone
            self.say(node, wire.Half(lease.digest, lease.first))
            self.say(node, wire.Got(lease.digest, lease.first, b"", b""))
        assert read == 520
        for node in nodes[:: max(1, self.count // 100)]:
            self.say(node, wire.More(LAYERS[3], 4))
            self.say(node, wire.Miss(LAYERS[3], list(range(52))))
            self.say(node, wire.Ping())
        for node in nodes[5 :: max(1, self.count // 20)]:  # some die
            self.lines.run("disconnect", self.cluster.disconnected, self.now, node)
        for node in nodes:
            for layer in LAYERS:
                self.say(node, wire.Done(layer))
        for node in nodes:
            self.lines.run("disconnect", self.cluster.disconnected, self.now, node)
        self.now += 100.0
        self.tick()


@pytest.mark.timeout(300)
def test_a_hundred_times_the_nodes_cost_less_than_half_more_per_message() -> None:
    small, large = Fleet(100), Fleet(10_000)
    small.roll_out()
    large.roll_out()
    few, many = small.lines.each(), large.lines.each()
    assert {what: (few[what], many[what]) for what in few if many[what] > 1.5 * few[what]} == {}
    assert max(many.values()) < 3000
    assert large.cluster.swarms.counters.regranted <= 16
    state = large.cluster.swarms.state
    assert not (state.swarms or state.holders or state.rollouts or state.nodes)


def test_the_tracker_sends_a_few_messages_per_node_and_one_per_chunk() -> None:
    fleet = Fleet(1000)
    fleet.roll_out()
    leases, joined, content, extra = 520, 1000, 1000, 400
    assert fleet.sent <= leases + joined + content + extra


@pytest.mark.timeout(300)
def test_a_fleet_that_comes_back_with_partial_blobs_costs_no_more_per_node() -> None:
    have = bitmap(*range(0, 40))
    costs = []
    for count in (100, 10_000):
        fleet = Fleet(count)
        for number in range(count):
            node = node_id(number)
            fleet.cluster.connected(fleet.now, PeerInfo(node, "h", 1), "h")
            fleet.say(
                node, wire.Join(digest("image"), REGISTRY, [wire.Want(name, SIZE, 65536, have) for name in LAYERS])
            )
        costs.append(fleet.lines.each()["Join"])
    assert costs[1] < 1.5 * costs[0]
