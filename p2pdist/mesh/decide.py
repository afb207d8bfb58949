"""What the mesh does next: which chunk to ask of whom, whom to serve, whom to tell. Pure and synchronous.

No IO, no clock, no randomness of its own: `now` (seconds, any origin) and a `random.Random` are given. The caller
(`links` over sockets, the contract tests over an in-memory network, `bench/simulate.py` over a model) reports what
happened and carries out what is returned. The algorithm and its measurements: the design page on the swarm.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from p2pdist.mesh.knobs import Knobs

Peer = TypeVar("Peer")  # how the caller names its neighbours: any hashable
BlobKey = str  # a digest in text form

_READS = 2  # of one node at once without a tracker, as many as leases with one


@dataclass(frozen=True, slots=True)
class Ask(Generic[Peer]):
    """Ask `peer` for chunk `index` of `blob`."""

    peer: Peer
    blob: BlobKey
    index: int


@dataclass(slots=True)
class Waiter(Generic[Peer]):
    """A request of `peer` that waits for an upload slot. `token` is the caller's."""

    token: object
    peer: Peer
    blob: BlobKey
    index: int
    copies: int  # how many neighbours have the chunk
    chunks: int  # how many chunks the asker has
    order: int


@dataclass(slots=True)
class Turn(Generic[Peer]):
    """Whom to serve now, and whom to answer otherwise."""

    serve: list[Waiter[Peer]] = field(default_factory=list)
    refuse: list[Waiter[Peer]] = field(default_factory=list)
    absent: list[Waiter[Peer]] = field(default_factory=list)  # to be told that the chunk is not here


@dataclass(slots=True)
class _Blob(Generic[Peer]):
    count: int
    full: int
    have: int = 0
    coming: int = 0  # half of the chunk is here: requests for it may wait
    told: int = 0  # announced to neighbours
    pending: dict[int, dict[Peer, float]] = field(default_factory=dict)  # chunk -> peer -> when bytes last came
    asked: dict[int, float] = field(default_factory=dict)  # chunk -> when it was first asked for
    leased: set[int] = field(default_factory=set)  # chunks this node reads from upstream
    claims: dict[int, tuple[float, int]] = field(
        default_factory=dict
    )  # chunk -> when somebody said it reads it, how often


@dataclass(slots=True)
class _Neighbour(Generic[Peer]):
    has: dict[BlobKey, int] = field(default_factory=dict)
    load: int = 0  # uploads active and waiting there, as last heard
    active: int = 0  # downloads active there, as last heard
    out: int = 0  # our requests to it
    hold: float = 0.0  # ask nothing before this time


class Decisions(Generic[Peer]):
    """The state of the mesh on one node and every decision on it."""

    def __init__(self, rng: random.Random, knobs: Knobs, name: bytes = b"") -> None:
        self.knobs = knobs
        self.downloads = 0  # transfers that are sending us bytes now
        self.uploading = 0
        self.requests_out = 0
        self.chunk_time = 0.3  # seconds a chunk takes to arrive, smoothed
        self._rng = rng
        self._name = name
        self._blobs: dict[BlobKey, _Blob[Peer]] = {}  # in the order of the plan
        self._neighbours: dict[Peer, _Neighbour[Peer]] = {}
        self._waiters: list[Waiter[Peer]] = []
        self._order = 0
        self._quiet_since: float | None = None  # since when nothing is on its way
        self._missed_at = 0.0

    # --- blobs ---------------------------------------------------------------------------------------------------

    def add_blob(self, blob: BlobKey, count: int, have: int) -> None:
        """Take part in `blob`'s swarm; blobs added earlier are fetched first. `have`: bitmask of proved chunks."""
        self._blobs[blob] = _Blob(count, (1 << count) - 1, have=have, coming=have, told=have)

    def remove_blob(self, blob: BlobKey) -> list[Ask[Peer]]:
        """Leave the swarm; the requests that are still out, for the caller to cancel."""
        gone = self._blobs.pop(blob, None)
        self._waiters = [waiter for waiter in self._waiters if waiter.blob != blob]
        for neighbour in self._neighbours.values():
            neighbour.has.pop(blob, None)
        return [] if gone is None else [Ask(peer, blob, k) for k, peers in gone.pending.items() for peer in peers]

    def blobs(self) -> Iterable[BlobKey]:
        """The swarms this node takes part in."""
        return self._blobs.keys()

    def have(self, blob: BlobKey) -> int:
        """Bitmask of proved chunks."""
        return self._blobs[blob].have

    @property
    def chunks(self) -> int:
        """How many chunks of unfinished blobs this node has."""
        return sum(b.have.bit_count() for b in self._blobs.values() if b.have != b.full)

    @property
    def load(self) -> int:
        """Uploads active and waiting, as told to neighbours."""
        return self.uploading + len(self._waiters)

    # --- neighbours ----------------------------------------------------------------------------------------------

    def link_up(self, peer: Peer) -> None:
        """A control link to `peer` is open."""
        self._neighbours.setdefault(peer, _Neighbour())

    def link_down(self, peer: Peer) -> list[Ask[Peer]]:
        """The link is closed: everything about `peer` is forgotten; the requests that are out, to be cancelled."""
        if self._neighbours.pop(peer, None) is None:
            return []
        self._waiters = [waiter for waiter in self._waiters if waiter.peer != peer]
        return [
            Ask(peer, blob, k) for blob, b in self._blobs.items() for k, peers in b.pending.items() if peer in peers
        ]

    def neighbours(self) -> list[Peer]:
        """The peers with an open link."""
        return list(self._neighbours)

    def opened(self, peer: Peer, blob: BlobKey, have: int) -> None:
        """`peer` takes part in `blob`'s swarm and has these chunks."""
        neighbour = self._neighbours.get(peer)
        b = self._blobs.get(blob)
        if neighbour is not None and b is not None:
            neighbour.has[blob] = have & b.full
            b.told &= b.have  # it was not there when chunks that are still coming were announced: tell again when whole

    def closed(self, peer: Peer, blob: BlobKey) -> None:
        """`peer` left `blob`'s swarm."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.has.pop(blob, None)

    def peer_has(self, peer: Peer, blob: BlobKey, index: int, load: int, active: int) -> None:
        """`peer` has chunk `index`, or half of it."""
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return
        neighbour.load, neighbour.active = load, active
        if blob in neighbour.has and index < self._blobs[blob].count:
            neighbour.has[blob] |= 1 << index

    def useless(self, ask: Ask[Peer]) -> None:
        """What the peer has of this chunk can't be used here: as if it had none."""
        neighbour = self._neighbours.get(ask.peer)
        if neighbour is not None and ask.blob in neighbour.has:
            neighbour.has[ask.blob] &= ~(1 << ask.index)

    def claimed(self, blob: BlobKey, index: int, now: float) -> bool:
        """A node reads chunk `index` from upstream on its own, no tracker being there. True: news, to be passed on.

        A claim holds for five tau, and one chunk can be claimed twice: or a liar could keep it from everybody.
        """
        b = self._blobs.get(blob)
        if b is None or b.have >> index & 1 or index in b.leased:
            return False
        since, times = b.claims.get(index, (-math.inf, 0))
        if now - since < 5 * self._tau or times >= 2:
            return False
        b.claims[index] = (now, times + 1)
        return True

    @property
    def _tau(self) -> float:
        """Seconds in which what a node reads alone has come to those around it."""
        return max(1.0, 8 * self.chunk_time)

    def unclaimed(self, blob: BlobKey, index: int) -> None:
        """A node of another zone has what it claimed: this zone need not wait for it any more."""
        if blob in self._blobs:
            self._blobs[blob].claims.pop(index, None)

    # --- fetching ------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> list[Ask[Peer]]:
        """The requests to send now."""
        asks: list[Ask[Peer]] = []
        for blob, b in self._blobs.items():
            if self.requests_out >= self.knobs.requests:
                break
            if b.have != b.full:
                self._pump_blob(now, blob, b, asks)
        return asks

    def _pump_blob(self, now: float, blob: BlobKey, b: _Blob[Peer], asks: list[Ask[Peer]]) -> None:
        missing = b.full & ~b.have
        for k in b.pending:
            missing &= ~(1 << k)
        for k in b.leased:
            missing &= ~(1 << k)
        in_order = self._nobody_waits_for_us(blob, b)
        while missing and self.requests_out < self.knobs.requests:
            eligible: list[tuple[Peer, _Neighbour[Peer], int]] = []
            offered = 0
            for peer, n in self._neighbours.items():
                has = n.has.get(blob, 0) & missing
                if has and n.out < self.knobs.per_neighbour and n.hold <= now:
                    eligible.append((peer, n, has))
                    offered |= has
            if not eligible:
                return
            k = (offered & -offered).bit_length() - 1 if in_order else self._random_bit(offered, b.count)
            peer = min((e for e in eligible if e[2] >> k & 1), key=self._cost)[0]
            self._ask(now, peer, blob, b, k)
            asks.append(Ask(peer, blob, k))
            missing &= ~(1 << k)

    def _nobody_waits_for_us(self, blob: BlobKey, b: _Blob[Peer]) -> bool:
        """Every neighbour in the swarm is complete: chunks in order cost nobody anything, and the blob's own digest,
        hashed from the front, is proved when the last chunk comes (adr 0012)."""
        return all(n.has[blob] == b.full for n in self._neighbours.values() if blob in n.has)

    def _cost(self, candidate: tuple[Peer, _Neighbour[Peer], int]) -> float:
        """How long a request may take there: its load, ours on it, a little noise."""
        n = candidate[1]
        return max(n.load, n.out) + 0.5 * n.out + self._rng.random() * 0.1

    def _random_bit(self, mask: int, width: int) -> int:
        while mask.bit_count() > 1:
            some = mask & self._rng.getrandbits(width)
            if some:
                mask = some
        return mask.bit_length() - 1

    def _ask(self, now: float, peer: Peer, blob: BlobKey, b: _Blob[Peer], k: int) -> None:
        b.pending.setdefault(k, {})[peer] = now
        b.asked.setdefault(k, now)
        self._neighbours[peer].out += 1
        self.requests_out += 1
        self._quiet_since = None

    def progress(self, peer: Peer, blob: BlobKey, index: int, now: float) -> None:
        """Bytes of a requested chunk came from `peer`."""
        b = self._blobs.get(blob)
        if b is not None and peer in b.pending.get(index, ()):
            b.pending[index][peer] = now

    def _settle(self, peer: Peer, blob: BlobKey, index: int) -> None:
        b = self._blobs.get(blob)
        if b is not None:
            peers = b.pending.get(index)
            if peers is not None:
                peers.pop(peer, None)
                if not peers:
                    del b.pending[index]
        self.requests_out -= 1
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.out -= 1

    def busy(self, ask: Ask[Peer], load: int, now: float) -> None:
        """`peer` answered 503 with its load."""
        self._settle(ask.peer, ask.blob, ask.index)
        self._comes_no_more(ask.blob, ask.index)
        neighbour = self._neighbours.get(ask.peer)
        if neighbour is not None:
            neighbour.load = load
            pause = max(self.knobs.hold_min, min(self.knobs.hold_max, self.chunk_time / 8))
            neighbour.hold = max(neighbour.hold, now + pause)

    def absent(self, ask: Ask[Peer], load: int, now: float) -> None:
        """`peer` answered that the chunk is not there: half of it was, and the rest never came."""
        neighbour = self._neighbours.get(ask.peer)
        if neighbour is not None and ask.blob in neighbour.has:
            neighbour.has[ask.blob] &= ~(1 << ask.index)
        self.busy(ask, load, now)

    def _comes_no_more(self, blob: BlobKey, index: int) -> None:
        """A source of the chunk is gone. If it was the last, those who wait here for the chunk must look elsewhere.

        Else nodes that each had half of a chunk from one that died wait for each other.
        """
        b = self._blobs.get(blob)
        if b is not None and index not in b.pending and index not in b.leased:
            gone = (1 << index) & ~b.have
            b.coming &= ~gone
            b.told &= ~gone

    def failed(self, ask: Ask[Peer], now: float, *, hold: float) -> None:
        """The request came to nothing (cancelled, connection lost, bytes refused). Have a `turn` afterwards."""
        self._settle(ask.peer, ask.blob, ask.index)
        self._comes_no_more(ask.blob, ask.index)
        neighbour = self._neighbours.get(ask.peer)
        if neighbour is not None and hold:
            neighbour.hold = max(neighbour.hold, now + hold)

    def received(self, ask: Ask[Peer], seconds: float) -> None:
        """A whole chunk came from `peer` within `seconds` of its first byte (proved or not: `proved` says)."""
        self._settle(ask.peer, ask.blob, ask.index)
        self.chunk_time += 0.1 * (seconds - self.chunk_time)

    def coming(self, blob: BlobKey, index: int) -> list[Peer]:
        """Half of chunk `index` is here; the neighbours to tell."""
        b = self._blobs.get(blob)
        if b is None or b.coming >> index & 1:
            return []
        b.coming |= 1 << index
        return self._tell(blob, b, index)

    def proved(self, blob: BlobKey, index: int) -> tuple[list[Peer], list[Ask[Peer]]]:
        """Chunk `index` is proved: the neighbours to tell, and the requests for it that are still out, to cancel."""
        b = self._blobs.get(blob)
        if b is None:
            return [], []
        bit = 1 << index
        b.have |= bit
        b.coming |= bit
        b.asked.pop(index, None)
        b.leased.discard(index)
        b.claims.pop(index, None)
        return self._tell(blob, b, index), [Ask(peer, blob, index) for peer in b.pending.get(index, ())]

    def forgotten(self, blob: BlobKey, index: int) -> None:
        """Chunk `index` turned out wrong and is wanted again."""
        b = self._blobs.get(blob)
        if b is not None:
            bit = ~(1 << index)
            b.have &= bit
            b.coming &= bit
            b.told &= bit

    def _tell(self, blob: BlobKey, b: _Blob[Peer], index: int) -> list[Peer]:
        if b.told >> index & 1:
            return []
        b.told |= 1 << index
        return [p for p, n in self._neighbours.items() if blob in n.has and not n.has[blob] >> index & 1]

    def leased(self, blob: BlobKey, index: int) -> bool:
        """This node is to read chunk `index` from upstream; False if it has it already or takes no part."""
        b = self._blobs.get(blob)
        if b is None or b.have >> index & 1:
            return False
        b.leased.add(index)
        return True

    def unleased(self, blob: BlobKey, index: int) -> None:
        """The read is over, one way or the other. Have a `turn` afterwards."""
        b = self._blobs.get(blob)
        if b is not None:
            b.leased.discard(index)
            self._comes_no_more(blob, index)

    # --- serving -------------------------------------------------------------------------------------------------

    def request(self, token: object, peer: Peer, blob: BlobKey, index: int, chunks: int, active: int) -> Turn[Peer]:
        """`peer`, who has `chunks` chunks and `active` downloads running, asks for a chunk."""
        self._order += 1
        waiter = Waiter(token, peer, blob, index, self._copies(blob, index), chunks, self._order)
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.active = active
        b = self._blobs.get(blob)
        if b is None or not (b.have | b.coming) >> index & 1:
            return Turn(absent=[waiter])
        self._waiters.append(waiter)
        return self.turn()

    def withdrawn(self, token: object) -> None:
        """The asker went away while it waited."""
        self._waiters = [waiter for waiter in self._waiters if waiter.token is not token]

    def uploaded(self) -> Turn[Peer]:
        """A transfer that was served has ended; who is next."""
        self.uploading -= 1
        return self.turn()

    def turn(self) -> Turn[Peer]:
        """Fill the upload slots with the first waiters whose chunk is whole; refuse the last of too many."""
        turn: Turn[Peer] = Turn()
        for waiter in self._waiters:
            b = self._blobs[waiter.blob]
            if not (b.have | b.coming) >> waiter.index & 1:
                turn.absent.append(waiter)
        if turn.absent:
            self._waiters = [waiter for waiter in self._waiters if waiter not in turn.absent]
        while self.uploading < self.knobs.uploads:
            ready = [w for w in self._waiters if self._blobs[w.blob].have >> w.index & 1]
            if not ready:
                break
            chosen = min(ready, key=self._rank)
            self._waiters.remove(chosen)
            self.uploading += 1
            turn.serve.append(chosen)
        while len(self._waiters) > self.knobs.waiting:
            last = max(self._waiters, key=self._rank)
            self._waiters.remove(last)
            turn.refuse.append(last)
        return turn

    def _copies(self, blob: BlobKey, index: int) -> int:
        """How many neighbours have the chunk."""
        return sum(n.has.get(blob, 0) >> index & 1 for n in self._neighbours.values())

    def _rank(self, waiter: Waiter[Peer]) -> tuple[int, int, int, int]:
        """Chunks that few have go first: whoever began early lacks just those, latecomers any (adr 0015)."""
        neighbour = self._neighbours.get(waiter.peer)
        active = neighbour.active if neighbour is not None else 0
        return (waiter.copies, active, waiter.chunks, waiter.order)

    # --- time ----------------------------------------------------------------------------------------------------

    def stalled(self, now: float) -> list[Ask[Peer]]:
        """Requests that brought no byte for too long: cancel them, drop their peers, report them dead."""
        return self._silent_since(now - self.knobs.stall)

    def quiet(self, now: float) -> list[Ask[Peer]]:
        """Requests of which nothing was heard for a while: look whether a little has come."""
        return self._silent_since(now - self.knobs.stall / 3)

    def _silent_since(self, limit: float) -> list[Ask[Peer]]:
        return [
            Ask(peer, blob, k)
            for blob, b in self._blobs.items()
            for k, peers in b.pending.items()
            for peer, last in peers.items()
            if last < limit
        ]

    def late(self, now: float) -> list[Ask[Peer]]:
        """The end game: one second request for each of the last chunks that is late, two copies at most."""
        asks: list[Ask[Peer]] = []
        for blob, b in self._blobs.items():
            left = b.count - b.have.bit_count()
            if not left or left > max(2, b.count // self.knobs.end_game):
                continue
            for k, peers in list(b.pending.items()):
                if self.requests_out >= self.knobs.requests:
                    return asks
                if len(peers) != 1 or now - b.asked.get(k, now) <= 2 * self.chunk_time:
                    continue
                others = [
                    (peer, n, 0)
                    for peer, n in self._neighbours.items()
                    if peer not in peers and n.has.get(blob, 0) >> k & 1 and n.out < self.knobs.per_neighbour
                ]
                if others:
                    peer = min(others, key=self._cost)[0]
                    self._ask(now, peer, blob, b, k)
                    asks.append(Ask(peer, blob, k))
        return asks

    def missing(self, now: float) -> dict[BlobKey, list[int]]:
        """Chunks that nobody near has although nothing is on its way for a while: for the tracker, once a second."""
        if self.requests_out or any(b.leased for b in self._blobs.values()):
            self._quiet_since = None
            return {}
        if self._quiet_since is None:
            self._quiet_since = now
        if now - max(self._quiet_since, self._missed_at) < self.knobs.miss_after:
            return {}
        lost: dict[BlobKey, list[int]] = {}
        for blob, b in self._blobs.items():
            gone = b.full & ~b.have
            for n in self._neighbours.values():
                gone &= ~n.has.get(blob, 0)
            if gone:
                lost[blob] = list(bits(gone, 64))
        if lost:
            self._missed_at = now
        return lost

    def self_lease(
        self,
        now: float,
        orphaned_at: float,
        nodes: int,
        away: Mapping[Peer, Mapping[BlobKey, int]] = MappingProxyType({}),
    ) -> tuple[BlobKey, int] | None:
        """With no tracker since `orphaned_at`: a chunk that this node may now read from upstream by itself, if any.

        Of a chunk that nobody near has and nobody claimed lately, the highest hash among the live unfinished nodes
        it knows is the owner, if its hash also makes it likely to be the highest of all `nodes`; both rules relax
        with time (design page on the swarm, "With no tracker"; docs/adr/0014 for where not all are neighbours).
        `away`: what nodes of other zones have; they are rivals for what none of them has.
        """
        reads = sum(len(b.leased) for b in self._blobs.values())
        at_once = min(_READS, max(1, self.knobs.alone_reads // max(1, nodes)))
        if now < orphaned_at + self.knobs.alone_after or reads >= at_once:
            return None
        tau, alone_at = self._tau, orphaned_at + self.knobs.alone_after
        for blob, b in self._blobs.items():
            near = 0
            for n in self._neighbours.values():
                near |= n.has.get(blob, 0)
            wanted = b.full & ~b.have & ~near
            for k in (*b.pending, *b.leased):
                wanted &= ~(1 << k)
            rivals = [p for p, n in self._neighbours.items() if blob in n.has and n.has[blob] != b.full]
            abroad = {p: has[blob] for p, has in away.items() if blob in has}
            everywhere = rivals + [p for p, has in abroad.items() if has != b.full]
            there = 0
            for has in abroad.values():
                there |= has
            indexes = list(bits(wanted))
            self._rng.shuffle(indexes)
            for k in indexes:
                free_at = max(alone_at, b.claims[k][0] + 5 * tau) if k in b.claims else alone_at
                if now < free_at:
                    continue
                wait = now - free_at
                mine = _share(blob, k, self._name)
                others = rivals if there >> k & 1 else everywhere
                rank = sum(_share(blob, k, repr(p).encode() if not isinstance(p, bytes) else p) > mine for p in others)
                likely = (1 - mine) * nodes <= self.knobs.owners + wait / tau or len(others) + 1 >= nodes
                if rank <= wait / (5 * tau) and likely:
                    return blob, k
        return None


def bits(mask: int, limit: int | None = None) -> Iterable[int]:
    """The indexes of the set bits, lowest first, at most `limit` of them."""
    found = 0
    while mask and (limit is None or found < limit):
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
        found += 1


def _share(blob: BlobKey, index: int, node: bytes) -> float:
    """A number in [0, 1) that every node computes alike."""
    seed = hashlib.sha256(b"%s|%d|%s" % (blob.encode(), index, node)).digest()
    return int.from_bytes(seed[:6], "big") / float(1 << 48)
