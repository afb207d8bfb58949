"""A simulated rollout: its clock, its tracker, and when nodes come and go."""

from __future__ import annotations

import argparse
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from simulate_links import Links, Transfer
from simulate_mesh import DIGEST, Mesh, Node

from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_count, chunk_size_for
from p2pdist.protocol.messages import PeerInfo
from tracker.rules import SwarmRules
from tracker.swarms import Swarms

MIB = 1 << 20
UPSTREAM = 0


class Simulation(Mesh):
    """One rollout. `options` are those of bench/simulate.py."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.o = options
        self.rng = random.Random(options.seed)
        self.size = options.size * MIB
        self.chunk = options.chunk * 1024 if options.chunk else chunk_size_for(self.size, self.size)
        self.count = chunk_count(self.size, self.chunk)
        n, rate = options.nodes, options.rate * 125_000.0
        self.rates = np.full(n + 1, rate)
        self.rates[UPSTREAM] = rate * options.upstream
        self.slow = set(self.rng.sample(range(1, n + 1), round(options.slow * n)))
        for i in self.slow:
            self.rates[i] *= options.slow_rate
        self.links = Links(self.rates.copy(), self.rates.copy())
        self.nodes = [Node(i, self.count, options.seed * 1_000_003 + i) for i in range(n + 1)]
        self.tracker = Swarms(SwarmRules(), random.Random(options.seed + 1), 0.0)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = 0
        self.counts: Counter[str] = Counter()
        self.read = 0
        self.overhead: float = options.overhead
        self.limit = max(self.size / self.rates[UPSTREAM], self.size / rate, n * self.size / self.rates.sum())
        self.tick_at = 0.0
        self.orphaned_at: float | None = None

    # --- the clock ---

    def later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, call, args))

    def send(self, call: Callable[..., None], *args: Any) -> None:
        """After one latency."""
        self.later(self.o.latency, call, *args)

    def run(self) -> None:
        at = 0.0
        for node in self.nodes[1:]:
            if self.o.spread:
                at += self.rng.expovariate(self.o.nodes / (self.o.spread * self.limit))
            node.started = at
            self.later(at, self.begin, node)
        victims = self.rng.sample(self.nodes[1:], int(self.o.kill * self.o.nodes))
        for node in victims:
            self.later(self.rng.uniform(0.2, 0.8) * self.limit, self.kill, node)
        if self.o.kill_tracker:
            self.later(self.o.kill_tracker * self.limit, self.lose_tracker)
        step = self.chunk / (self.o.rate * 125_000.0) / 10
        left = self.nodes[1:]
        while left:
            self.now += step
            while self.events and self.events[0][0] <= self.now:
                _, _, call, args = heapq.heappop(self.events)
                call(*args)
            halves, whole = self.links.advance(step)
            for transfer in halves:
                self.half(transfer)
            for transfer in whole:
                self.whole(transfer)
            due = self.tracker.next_deadline()
            if due is not None and due <= self.now and self.orphaned_at is None:
                self.deliver(self.tracker.tick(self.now))
            if self.now >= self.tick_at:
                self.tick_at = self.now + self.o.tick
                for node in left:
                    if node.started <= self.now and not node.dead:
                        self.tick(node)
                left = [node for node in left if node.finished is None and not node.dead]
            if self.now > 20 * self.limit:
                raise SystemExit(f"{len(left)} nodes are not done after 20 times the limit")

    # --- the tracker ---

    def deliver(self, outbox: list[tuple[bytes, wire.FromTracker]]) -> None:
        for to, message in outbox:
            self.counts["from tracker"] += 1
            self.send(self.told, self.nodes[int.from_bytes(to, "big")], message)

    def tell(self, node: Node, method: str, message: Any) -> None:
        self.counts["to tracker"] += 1
        self.send(self.ask_tracker, node, method, message)

    def ask_tracker(self, node: Node, method: str, message: Any) -> None:
        if not node.dead and self.orphaned_at is None:
            self.deliver(getattr(self.tracker, method)(self.now, node.name, message))

    def lose_tracker(self) -> None:
        self.orphaned_at = self.now
        for node in self.nodes[1:]:
            for index in sorted(node.reading) if not node.dead else ():
                self.say_claim(node, index)

    def read_alone(self, node: Node) -> None:
        """What the engine does without a tracker: reads from upstream, claimed first; at most one begins at a time."""
        if self.orphaned_at is None or node.dead or node.finished is not None:
            return
        own = node.decide.self_lease(self.now, self.orphaned_at, self.o.nodes)
        if own is not None:
            self.counts["read alone"] += 1
            self.say_claim(node, own[1])
            node.decide.leased(DIGEST, own[1])
            transfer = Transfer(UPSTREAM, node.number, own[1], None)
            self.later(self.o.read_pause, self.links.start, transfer, self.length(own[1]))

    def came_from_upstream(self, node: Node, transfer: Transfer) -> None:
        if transfer.alone:
            self.stream(node)
        self.read_alone(node)

    def say_claim(self, node: Node, index: int) -> None:
        for peer in node.decide.neighbours():
            self.counts["claims"] += 1
            self.send(self.claimed, self.nodes[int.from_bytes(peer, "big")], index)

    def claimed(self, node: Node, index: int) -> None:
        if not node.dead and node.decide.claimed(DIGEST, index, self.now):
            self.say_claim(node, index)

    def told(self, node: Node, message: wire.FromTracker) -> None:
        if node.dead:
            return
        if isinstance(message, (wire.Joined, wire.Neighbours)):
            for peer in message.peers:
                self.later(2 * self.o.latency, self.link, node, self.nodes[int.from_bytes(peer.node, "big")])
        elif isinstance(message, wire.Lease) and message.alone:
            node.recalled, node.streaming = False, True
            self.stream(node)
        elif isinstance(message, wire.Lease):
            for index in range(message.first, message.first + message.count):
                if node.decide.leased(DIGEST, index):
                    node.reading.add(index)
                    self.links.start(Transfer(UPSTREAM, node.number, index, None), self.length(index))
                else:
                    self.tell(node, "got", wire.Got(DIGEST, index, bytes(32), bytes(64)))
        elif isinstance(message, wire.Recall):
            node.recalled = True
            if not node.streaming:
                self.returned(node)

    def stream(self, node: Node) -> None:
        missing = ~node.decide.have(DIGEST) & ((1 << self.count) - 1)
        if node.recalled or not missing:
            node.streaming = False
            if node.recalled:
                self.returned(node)
            return
        index = (missing & -missing).bit_length() - 1
        self.links.start(Transfer(UPSTREAM, node.number, index, None, alone=True), self.length(index))

    def returned(self, node: Node) -> None:
        have = node.decide.have(DIGEST).to_bytes((self.count + 7) // 8, "little")
        self.tell(node, "returned", wire.Returned(DIGEST, have))

    # --- nodes ---

    def begin(self, node: Node) -> None:
        self.tracker.connected(self.now, PeerInfo(node.name, str(node.number), 1))
        node.decide.add_blob(DIGEST, self.count, 0)
        self.tell(node, "join", wire.Join(DIGEST, "registry", [wire.Want(DIGEST, self.size, self.chunk)]))

    def kill(self, node: Node) -> None:
        if node.finished is not None or node.dead:
            return
        node.dead = True
        for transfer in [t for t in self.links.owner if t and node.number in (t.source, t.target)]:
            self.links.stop(transfer)
        for peer in node.decide.neighbours():
            self.send(self.unlink, self.nodes[int.from_bytes(peer, "big")], node)
        self.send(lambda: self.deliver(self.tracker.disconnected(self.now, node.name)))
