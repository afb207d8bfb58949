"""Nodes of a simulated rollout among themselves: the shipped decisions, and what the engine does around them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from simulate_links import Links, Transfer

from p2pdist.mesh.decide import Ask, Decisions, Turn
from p2pdist.mesh.knobs import Knobs
from p2pdist.protocol import messages as wire

DIGEST = "sha256:" + "0" * 64


def name_of(node: int) -> bytes:
    return node.to_bytes(32, "big")


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
        self.reading: set[int] = set()  # chunks on their way from upstream
        self.incoming: dict[tuple[bytes, int], Transfer | None] = {}  # (peer, index) -> its transfer, once it began
        self.sending: dict[Transfer, None] = {}  # in order: runs of one seed are alike


Request = tuple[Node, Ask[bytes]]  # who asks, and what: the token of a request


class Mesh(ABC):
    """What happens between nodes. Whoever derives from it keeps the clock and the tracker."""

    now: float
    nodes: list[Node]
    links: Links
    counts: Counter[str]
    count: int  # chunks of the blob
    size: int  # bytes of it
    chunk: int
    overhead: float
    rates: Any  # bytes per second of each node
    read: int  # chunks that came from upstream

    @abstractmethod
    def send(self, call: Callable[..., None], *args: Any) -> None:
        """`call` after one latency."""

    @abstractmethod
    def tell(self, node: Node, method: str, message: Any) -> None:
        """A message to the tracker."""

    @abstractmethod
    def came_from_upstream(self, node: Node, transfer: Transfer) -> None:
        """A chunk that the node read."""

    @abstractmethod
    def read_alone(self, node: Node) -> None:
        """Without a tracker the node may read."""

    def unlink(self, node: Node, gone: Node) -> None:
        for ask in node.decide.link_down(gone.name):
            self.drop(node, ask)
        gone.sending.clear()
        if node.finished is None and len(node.decide.neighbours()) < node.decide.knobs.few:
            self.tell(node, "more", wire.More(DIGEST, node.decide.knobs.degree // 2))
        for transfer in [t for t in node.sending if t.target == gone.number]:
            node.sending.pop(transfer, None)
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

    def length(self, index: int) -> float:
        return float(min(self.chunk, self.size - index * self.chunk)) * self.overhead

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
            asker, ask = cast(Request, waiter.token)
            transfer = Transfer(node.number, asker.number, ask.index, ask)
            if asker.dead or (ask.peer, ask.index) not in asker.incoming:
                self.turn(node, node.decide.uploaded())
                continue
            node.sending[transfer] = None
            asker.incoming[ask.peer, ask.index] = transfer
            asker.decide.downloads += 1
            self.links.start(transfer, self.length(ask.index))
        for waiter in turn.refuse:
            asker, ask = cast(Request, waiter.token)
            self.send(self.busy, asker, ask, node.decide.load)
        for waiter in turn.absent:
            asker, ask = cast(Request, waiter.token)
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
                peer.sending.pop(transfer, None)
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
            node.reading.discard(index)
            if not transfer.alone:
                self.tell(node, "got", wire.Got(DIGEST, index, bytes(32), bytes(64)))
        else:
            sender = self.nodes[transfer.source]
            sender.sending.pop(transfer, None)
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
        if ask is None:
            self.came_from_upstream(node, transfer)
        self.pump(node)

    def announce(self, node: Node, index: int, peers: list[bytes]) -> None:
        for peer in peers:
            self.counts["have"] += 1
            other = self.nodes[int.from_bytes(peer, "big")]
            self.send(self.heard, other, node.name, index, node.decide.load, node.decide.downloads)

    def heard(self, node: Node, peer: bytes, index: int, load: int, active: int) -> None:
        if not node.dead:
            node.decide.peer_has(peer, DIGEST, index, load, active)
            if node.decide.requests_out < node.decide.knobs.requests:
                self.pump(node)

    def tick(self, node: Node) -> None:
        for (peer, index), transfer in node.incoming.items():
            if transfer is not None:
                node.decide.progress(peer, DIGEST, index, self.now)
        for ask in node.decide.stalled(self.now):
            self.counts["stalled"] += 1
            self.drop(node, ask)
        self.pump(node)
        self.request(node, node.decide.late(self.now))
        for indexes in node.decide.missing(self.now).values():
            self.tell(node, "miss", wire.Miss(DIGEST, indexes))
        self.read_alone(node)
