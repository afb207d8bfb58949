"""Rollouts of 100 to 10,000 nodes in simulation: the shipped decisions over a modelled network.

    bench/simulate.py --nodes 1000                      all start together
    bench/simulate.py --nodes 1000 --spread 0.5         starts spread over half of the fluid limit (Poisson)
    bench/simulate.py --nodes 1000 --slow 0.1 --kill 0.05
    bench/simulate.py --calibrate                       the 12 nodes of bench/rollout.py, to compare with the lab

What decides is the product's own code: `tracker.swarms.Swarms` and `p2pdist.mesh.decide.Decisions`. Modelled are the
links (max-min fair shares, in steps of a tenth of a chunk time) and the latency of every message. Not modelled: TCP,
CPU, the daemon. Times are in seconds of the simulation.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from p2pdist.mesh.decide import Ask, Decisions, Turn
from p2pdist.mesh.knobs import Knobs
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_count, chunk_size_for
from p2pdist.protocol.messages import PeerInfo
from tracker.rules import SwarmRules
from tracker.swarms import Swarms

MIB = 1 << 20
DIGEST = "sha256:" + "0" * 64
UPSTREAM = 0
SIGNATURE = bytes(64)


def name_of(node: int) -> bytes:
    return node.to_bytes(32, "big")


class Links:
    """All transfers under way, as arrays: who sends to whom, how many bytes are left."""

    def __init__(self, up: np.ndarray, down: np.ndarray) -> None:
        self.up, self.down = up, down
        self.up_level, self.down_level = up.copy(), down.copy()
        size = 1024
        self.source = np.zeros(size, np.int32)
        self.target = np.zeros(size, np.int32)
        self.left = np.zeros(size)
        self.half = np.zeros(size)
        self.active = np.zeros(size, bool)
        self.owner: list[Transfer | None] = [None] * size
        self.free = list(range(size))

    def start(self, transfer: Transfer, size: float) -> None:
        if not self.free:
            old = len(self.left)
            for field in ("source", "target", "left", "half", "active"):
                array = getattr(self, field)
                setattr(self, field, np.concatenate([array, np.zeros_like(array)]))
            self.owner += [None] * old
            self.free = list(range(old, 2 * old))
        slot = self.free.pop()
        transfer.slot = slot
        self.source[slot], self.target[slot] = transfer.source, transfer.target
        self.left[slot], self.half[slot] = size, size / 2
        self.active[slot] = True
        self.owner[slot] = transfer

    def stop(self, transfer: Transfer) -> None:
        if transfer.slot >= 0:
            self.active[transfer.slot] = False
            self.owner[transfer.slot] = None
            self.free.append(transfer.slot)
            transfer.slot = -1

    def advance(self, seconds: float) -> tuple[list[Transfer], list[Transfer]]:
        """Move bytes; the transfers that reached half, and those that are complete."""
        slots = np.flatnonzero(self.active)
        if not len(slots):
            return [], []
        rate = self._rates(self.source[slots], self.target[slots])
        before = self.left[slots]
        after = before - rate * seconds
        self.left[slots] = after
        half = self.half[slots]
        halves = slots[(before > half) & (after <= half)]
        whole = slots[after <= 0]
        return [t for s in halves if (t := self.owner[s])], [t for s in whole if (t := self.owner[s])]

    def _rates(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Max-min fair rates of all transfers, by water levels of both ends that follow each other.

        The levels of the step before are the start: few transfers change from one step to the next.
        """
        for _ in range(2):
            self.up_level = _level(self.up, source, self.down_level[target])
            self.down_level = _level(self.down, target, self.up_level[source])
        rate = np.minimum(self.up_level[source], self.down_level[target])
        # Levels that are still on their way may ask too much of a link.
        rate *= np.minimum(1.0, self.up / np.maximum(1e-9, np.bincount(source, rate, len(self.up))))[source]
        rate *= np.minimum(1.0, self.down / np.maximum(1e-9, np.bincount(target, rate, len(self.down))))[target]
        return rate


def _level(capacity: np.ndarray, end: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each link gives to every transfer that its other end (`other`, per transfer) does not hold below that."""
    many = np.bincount(end, minlength=len(capacity))
    level = capacity / np.maximum(many, 1)  # from below: from above it may stop where all seem to be held
    for _ in range(3):
        held = other < level[end]
        used = np.bincount(end, np.where(held, other, 0.0), len(capacity))
        free = many - np.bincount(end, held, len(capacity))
        # Where all are held below the level, none of them needs more than the largest: the link is no limit.
        level = np.where(free > 0.5, np.maximum(0.0, capacity - used) / np.maximum(free, 1.0), capacity)
    return level


class Transfer:
    """One chunk on its way. `ask` is None for a read from upstream."""

    __slots__ = ("alone", "ask", "index", "slot", "source", "target")

    def __init__(self, source: int, target: int, index: int, ask: Ask[bytes] | None, alone: bool = False) -> None:
        self.source, self.target, self.index, self.ask, self.alone = source, target, index, ask, alone
        self.slot = -1


class Node:
    """One agent: the decisions, and what the engine around them remembers."""

    def __init__(self, number: int, count: int, seed: int) -> None:
        self.number = number
        self.name = name_of(number)
        self.decide: Decisions[bytes] = Decisions(random.Random(seed), Knobs(), self.name)
        self.count = count
        self.started = 0.0
        self.finished: float | None = None
        self.dead = False
        self.recalled = False
        self.streaming = False
        self.incoming: dict[tuple[bytes, int], Transfer | None] = {}  # (peer, index) -> its transfer, once it began
        self.sending: set[Transfer] = set()


class Simulation:
    def __init__(self, options: argparse.Namespace) -> None:
        self.o = options
        self.rng = random.Random(options.seed)
        self.size = options.size * MIB
        self.chunk = options.chunk * 1024 if options.chunk else chunk_size_for(self.size, self.size)
        self.count = chunk_count(self.size, self.chunk)
        n, rate = options.nodes, options.rate * 125_000.0
        self.rates = np.full(n + 1, rate)
        self.rates[UPSTREAM] = rate * options.upstream
        self.slow = {i for i in range(1, n + 1) if self.rng.random() < options.slow}
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
        left = {node for node in self.nodes[1:]}
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
                left = {node for node in left if node.finished is None and not node.dead}
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

    def read_alone(self, node: Node) -> None:
        """What the engine does without a tracker: one read from upstream at a time, claimed first."""
        if self.orphaned_at is None or node.dead or node.finished is not None:
            return
        own = node.decide.self_lease(self.now, self.orphaned_at, self.o.nodes)
        if own is not None:
            self.counts["read alone"] += 1
            self.say_claim(node, own[1])
            node.decide.leased(DIGEST, own[1])
            self.links.start(Transfer(UPSTREAM, node.number, own[1], None), self.bytes(own[1]))

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
                    self.links.start(Transfer(UPSTREAM, node.number, index, None), self.bytes(index))
                else:
                    self.got(node, index)
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
        self.links.start(Transfer(UPSTREAM, node.number, index, None, alone=True), self.bytes(index))

    def returned(self, node: Node) -> None:
        have = node.decide.have(DIGEST).to_bytes((self.count + 7) // 8, "little")
        self.tell(node, "returned", wire.Returned(DIGEST, have))

    def got(self, node: Node, index: int) -> None:
        self.tell(node, "got", wire.Got(DIGEST, index, bytes(32), SIGNATURE))

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

    def unlink(self, node: Node, gone: Node) -> None:
        for ask in node.decide.link_down(gone.name):
            self.drop(node, ask)
        for waiter in list(gone.sending):
            gone.sending.discard(waiter)
        if node.finished is None and len(node.decide.neighbours()) < node.decide.knobs.few:
            self.tell(node, "more", wire.More(DIGEST, node.decide.knobs.degree // 2))
        for transfer in [t for t in node.sending if t.target == gone.number]:
            node.sending.discard(transfer)
            self.turn(node, node.decide.uploaded())
        self.go_on(node)

    def link(self, node: Node, other: Node) -> None:
        if node.dead or other.dead or other.name in node.decide.neighbours() or node is other:
            return
        for one, two in ((node, other), (other, node)):
            one.decide.link_up(two.name)
            if DIGEST in set(two.decide.blobs()):
                one.decide.opened(two.name, DIGEST, two.decide.have(DIGEST))
            if DIGEST in set(one.decide.blobs()):
                two.decide.opened(one.name, DIGEST, one.decide.have(DIGEST))
        self.pump(node)
        self.pump(other)

    def bytes(self, index: int) -> float:
        return float(min(self.chunk, self.size - index * self.chunk)) * self.o.overhead

    def pump(self, node: Node) -> None:
        if not node.dead and node.finished is None:
            self.request(node, node.decide.pump(self.now))

    def request(self, node: Node, asks: list[Ask[bytes]]) -> None:
        for ask in asks:
            self.counts["requests"] += 1
            node.incoming[ask.peer, ask.index] = None
            chunks, active = node.decide.chunks, node.decide.downloads
            self.send(self.requested, self.nodes[int.from_bytes(ask.peer, "big")], node, ask, chunks, active)

    def requested(self, node: Node, asker: Node, ask: Ask[bytes], chunks: int, active: int) -> None:
        if not node.dead and not asker.dead:
            token = (asker, ask)
            self.turn(node, node.decide.request(token, asker.name, DIGEST, ask.index, chunks, active))

    def turn(self, node: Node, turn: Turn[bytes]) -> None:
        for waiter in turn.serve:
            asker, ask = waiter.token  # type: ignore[misc]
            transfer = Transfer(node.number, asker.number, ask.index, ask)
            if asker.dead or (ask.peer, ask.index) not in asker.incoming:
                self.turn(node, node.decide.uploaded())
                continue
            node.sending.add(transfer)
            asker.incoming[ask.peer, ask.index] = transfer
            asker.decide.downloads += 1
            self.links.start(transfer, self.bytes(ask.index))
        for waiter in turn.refuse:
            asker, ask = waiter.token  # type: ignore[misc]
            self.send(self.busy, asker, ask, node.decide.load)
        for waiter in turn.absent:
            asker, ask = waiter.token  # type: ignore[misc]
            self.send(self.absent, asker, ask, node.decide.load)

    def busy(self, node: Node, ask: Ask[bytes], load: int) -> None:
        if node.incoming.pop((ask.peer, ask.index), 0) is None and not node.dead:
            self.counts["busy"] += 1
            node.decide.busy(ask, load, self.now)
            self.go_on(node)

    def absent(self, node: Node, ask: Ask[bytes], load: int) -> None:
        if node.incoming.pop((ask.peer, ask.index), 0) is None and not node.dead:
            node.decide.absent(ask, load, self.now)
            self.go_on(node)

    def go_on(self, node: Node) -> None:
        self.turn(node, node.decide.turn())
        self.pump(node)

    def drop(self, node: Node, ask: Ask[bytes]) -> None:
        """A request is given up."""
        transfer = node.incoming.pop((ask.peer, ask.index), None)
        node.decide.failed(ask, self.now, hold=0.0)
        peer = self.nodes[int.from_bytes(ask.peer, "big")]
        if transfer is not None:
            node.decide.downloads -= 1
            self.links.stop(transfer)
            if transfer in peer.sending:
                peer.sending.discard(transfer)
                self.turn(peer, peer.decide.uploaded())

    def half(self, transfer: Transfer) -> None:
        node = self.nodes[transfer.target]
        if transfer.alone:
            return
        self.announce(node, transfer.index, node.decide.coming(DIGEST, transfer.index))
        if transfer.ask is None:
            self.tell(node, "half", wire.Half(DIGEST, transfer.index))

    def whole(self, transfer: Transfer) -> None:
        self.links.stop(transfer)
        node, ask, index = self.nodes[transfer.target], transfer.ask, transfer.index
        if ask is None:
            self.read += 1
            if not transfer.alone:
                self.got(node, index)
        else:
            sender = self.nodes[transfer.source]
            sender.sending.discard(transfer)
            node.decide.downloads -= 1
            node.incoming.pop((ask.peer, index), None)
            seconds = self.chunk / self.rates[transfer.target] * max(1, node.decide.downloads + 1)
            node.decide.received(ask, seconds)
            self.turn(sender, sender.decide.uploaded())
        if node.decide.have(DIGEST) >> index & 1:
            self.counts["redundant"] += 1
        else:
            peers, cancel = node.decide.proved(DIGEST, index)
            for one in cancel:
                self.drop(node, one)
            self.announce(node, index, peers)
            self.turn(node, node.decide.turn())
        if node.finished is None and node.decide.have(DIGEST).bit_count() == self.count:
            node.finished = self.now
            self.tell(node, "done", wire.Done(DIGEST))
        if transfer.alone:
            self.stream(node)
        self.pump(node)
        if ask is None:
            self.read_alone(node)

    def announce(self, node: Node, index: int, peers: list[bytes]) -> None:
        for peer in peers:
            self.counts["have"] += 1
            other = self.nodes[int.from_bytes(peer, "big")]
            self.send(self.heard, other, node.name, index, node.decide.load, node.decide.downloads)

    def heard(self, node: Node, peer: bytes, index: int, load: int, active: int) -> None:
        if not node.dead:
            node.decide.peer_has(peer, DIGEST, index, load, active)
            self.pump(node)

    def tick(self, node: Node) -> None:
        for ask in list(node.incoming):
            if node.incoming[ask] is not None:
                node.decide.progress(ask[0], DIGEST, ask[1], self.now)
        for ask in node.decide.stalled(self.now):
            self.counts["stalled"] += 1
            self.drop(node, ask)
        self.pump(node)
        self.request(node, node.decide.late(self.now))
        for indexes in node.decide.missing(self.now).values():
            self.tell(node, "miss", wire.Miss(DIGEST, indexes))
        self.read_alone(node)

    # --- the result ---

    def result(self) -> dict[str, Any]:
        n = self.o.nodes

        def ratios(slow: bool) -> list[float]:
            found = []
            for node in self.nodes[1:]:
                if node.finished is None or (node.number in self.slow) != slow:
                    continue
                own = max(
                    self.limit if not self.slow else self.size / self.rates[1 if slow is False else node.number], 0.0
                )
                own = max(self.size / self.rates[node.number], self.limit - node.started)
                found.append((node.finished - node.started) / own)
            return sorted(found)

        fast, slow = ratios(False), ratios(True)
        alive = len(fast) + len(slow)
        return {
            "nodes": n,
            "chunks": self.count,
            "limit_seconds": round(self.limit, 2),
            "p50_ratio": round(fast[len(fast) // 2], 3),
            "p99_ratio": round(fast[int(len(fast) * 0.99)], 3),
            "last_ratio": round(fast[-1], 3),
            **(
                {"slow_p50_ratio": round(slow[len(slow) // 2], 3), "slow_last_ratio": round(slow[-1], 3)}
                if slow
                else {}
            ),
            "egress_ratio": round(self.read / self.count, 3),
            **({"read_alone_ratio": round(self.counts["read alone"] / self.count, 3)} if self.o.kill_tracker else {}),
            "redundant_ratio": round(self.counts["redundant"] / self.count / alive, 4),
            "tracker_messages_per_chunk": round(
                (self.counts["to tracker"] + self.counts["from tracker"] - 3 * n) / self.count, 2
            ),
            "tracker_messages_per_node": round((self.counts["to tracker"] + self.counts["from tracker"]) / n, 2),
            "have_per_node_and_chunk": round(self.counts["have"] / self.count / n, 2),
            "requests_per_node_and_chunk": round(self.counts["requests"] / self.count / n, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="MiB of the blob")
    parser.add_argument("--chunk", type=int, default=0, help="KiB of a chunk (default: the product's choice)")
    parser.add_argument("--rate", type=float, default=50.0, help="Mbit/s of every node's link")
    parser.add_argument("--upstream", type=float, default=1.0, help="the registry's rate as a multiple of a node's")
    parser.add_argument("--spread", type=float, default=0.0, help="starts spread over this share of the limit")
    parser.add_argument("--slow", type=float, default=0.0, help="share of slow nodes")
    parser.add_argument("--slow-rate", type=float, default=0.25, help="their rate")
    parser.add_argument("--kill", type=float, default=0.0, help="share of nodes that die on the way")
    parser.add_argument("--kill-tracker", type=float, default=0.0, help="the tracker dies at this share of the limit")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds of every message")
    parser.add_argument("--overhead", type=float, default=1.0, help="bytes on the wire per byte of a chunk")
    parser.add_argument("--tick", type=float, default=0.1, help="seconds between a node's ticks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibrate", action="store_true", help="12 nodes with the lab's TCP/IP overhead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.calibrate:
        options.nodes, options.overhead = 12, 1.045
    began = time.process_time()
    simulation = Simulation(options)
    simulation.run()
    result = simulation.result()
    result["cpu_seconds"] = round(time.process_time() - began, 1)
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
