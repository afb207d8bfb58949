"""One blob in the BitTorrent engine: which torrents of it are loaded, what came, and what neighbours say of it.

Plain state with synchronous steps; `engine` carries out what follows from it. Times are loop times in seconds.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent.blame import Blame
from p2pdist.torrent.files import Cut
from p2pdist.torrent.metainfo import SHA1, Metainfo
from p2pdist.torrent.session import Session

COLD, MAPPED = 1, 2  # the torrents of a blob; their sum: both
_PUSHED = 3  # attestations kept of one chunk that nobody asked for, and ...
_PUSHED_CHUNKS = 4096  # ... of so many chunks


@dataclass(eq=False, slots=True)
class Loaded:
    """A torrent that libtorrent has, or is about to have. Used once: to change it, another one is loaded."""

    session: Session
    metainfo: Metainfo
    kind: int
    ready: asyncio.Future[bool]  # False: it failed
    removed: asyncio.Future[None]

    @property
    def usable(self) -> bool:
        """It takes peers and pieces."""
        return self.ready.done() and self.ready.result()


@dataclass(eq=False, slots=True)
class Theirs:
    """What a neighbour says of one blob. `torrents`: those that it has loaded."""

    digest: str
    size: int
    chunk_size: int
    full: int  # bit mask of all chunks
    have: int
    torrents: int
    whole: bool


@dataclass(eq=False, slots=True)
class MapRequest:
    """The chunk map on its way from a neighbour."""

    node: bytes
    until: float
    hashes: bytearray = field(default_factory=bytearray)


class Live:
    """See the module."""

    def __init__(self, exchange: Exchange, number: int, now: float) -> None:
        self.exchange = exchange
        self.number = number
        self.cut = Cut(exchange.size, exchange.chunk_size)
        self.fetching = not exchange.stored  # libtorrent works on `scratch`, else on the blob itself
        self.source = os.dup(exchange.fd)  # the proved bytes, whatever becomes of the exchange
        self.scratch = -1
        self.gone = False

        self.want = COLD if self.fetching else 0  # torrents that should be loaded
        self.dirty = False  # what is loaded must be loaded anew
        self.settling = False  # somebody makes it so
        self.loaded: dict[int, Loaded] = {}
        self.retry_at: float | None = None
        self.wanted_at = now  # a neighbour that lacks chunks was last seen
        self.hashes = b""  # the chunk map, once it is known
        self.map_from = b""  # who gave it, if it was not made here
        self.map_asked: MapRequest | None = None
        self.mappable = True  # a chunk map may still be used
        self.mapping = False  # this node's own is being made

        self.sound = 0  # chunks that libtorrent has, and that are the proved ones
        self.arrived = 0  # chunks that libtorrent has, proved or not
        self.came: set[int] = set()  # ... since the last flush was asked for
        self.flushing: set[int] | None = None  # what the flush under way is for
        self.landed: dict[int, float] = {}  # in the file since then, and nothing to prove them with yet
        self.provable: set[int] = set()  # in the file, and an attestation is here, or they are proved already
        self.flushed_at = 0.0
        self.flush_timer: asyncio.TimerHandle | None = None
        self.proving = False
        self.looking: int | None = None  # the chunk that is being proved at this moment
        self.doubtful: set[int] = set()  # did not match once; judged after another flush
        self.given: dict[int, float] = {}  # chunks given to libtorrent that it has not confirmed
        self.to_give: set[int] = set()  # chunks that libtorrent is about to be given
        self.giving = False
        self.proofs: dict[int, dict[bytes, bytes]] = {}  # chunk -> neighbour -> attestation
        self.needs: dict[int, dict[bytes, float]] = {}  # chunk -> neighbours asked for it, and when
        self.held: dict[int, tuple[int, float]] = {}  # looked at with so many proofs; again with more, or then
        self.blame = Blame()

        self.leased: dict[int, float] = {}  # chunks that this node reads from upstream, since when
        self.claims: dict[int, float] = {}
        self.chunk_time = 0.3  # seconds that a chunk takes to be read, smoothed
        self.moved = now  # something came, or was read
        self.missed_at = 0.0
        self.connections = 0  # open ones in libtorrent
        self.dialling = False  # a few are about to be opened
        self.dialled: set[bytes] = set()
        self.edges: set[bytes] = set()  # neighbours that dialled us

    @property
    def unfinished(self) -> bool:
        """Chunks are wanted."""
        return self.exchange.have != self.exchange.full

    @property
    def ending(self) -> bool:
        """So little is missing that every moment counts."""
        return (self.exchange.full & ~self.arrived).bit_count() <= max(2, self.exchange.count // 32)

    @property
    def torrents(self) -> int:
        """Which torrents take peers."""
        return sum(kind for kind, loaded in self.loaded.items() if loaded.usable)

    @property
    def current(self) -> Loaded | None:
        """The torrent through which the blob is fetched, once it is usable."""
        if not self.fetching:
            return None
        return next((loaded for loaded in self.loaded.values() if loaded.usable), None)

    def fits(self, theirs: Theirs) -> bool:
        """Whether a neighbour's swarm is this one."""
        return (theirs.size, theirs.chunk_size) == (self.exchange.size, self.exchange.chunk_size)

    def reset(self) -> None:
        """The torrent was unloaded: what it had that is not proved is lost."""
        self.sound &= self.exchange.have
        self.arrived = self.sound
        self.came.clear()
        self.flushing = None
        self.landed.clear()
        self.provable.clear()
        self.doubtful.clear()
        self.held.clear()
        self.given.clear()
        self.to_give.clear()
        self.blame.forget()
        self.connections = 0
        self.dialled.clear()
        self.edges.clear()

    def piece(self, index: int, now: float) -> bool:
        """libtorrent has all of a piece; False if that is no news."""
        if not 0 <= index < self.exchange.count or self.arrived >> index & 1:
            return False
        self.arrived |= 1 << index
        self.moved = now
        self.given.pop(index, None)
        self.came.add(index)
        return True

    def read(self, index: int, now: float) -> None:
        """A chunk is proved."""
        self.moved = now
        self.claims.pop(index, None)
        began = self.leased.pop(index, None)
        if began is not None:
            self.chunk_time += 0.1 * (now - began - self.chunk_time)

    def flush_due(self, now: float, interval: float) -> bool:
        """A flush barrier is to be asked for now; then it is for what came until now."""
        if self.flushing is not None or not self.came or now - self.flushed_at < interval:
            return False
        self.flushing, self.came = self.came, set()
        self.flushed_at = now
        return True

    def vouched(self, index: int, node: bytes, attestation: bytes) -> bool:
        """A neighbour gave an attestation; False if it is not wanted."""
        proofs = self.proofs.get(index, {})
        asked = node in self.needs.get(index, ())
        room = len(proofs) < _PUSHED and (index in self.proofs or len(self.proofs) < _PUSHED_CHUNKS)
        if index >= self.exchange.count or self.exchange.have >> index & 1 or not (asked or room):
            return False
        self.proofs.setdefault(index, {})[node] = attestation
        self.learnt(index)
        return True

    def flush_over(self, now: float) -> None:
        """The barrier is reached."""
        for index in self.flushing or ():
            if index in self.proofs or self.exchange.have >> index & 1:
                self.provable.add(index)
            else:
                self.landed[index] = now
        self.flushing = None

    def learnt(self, index: int) -> None:
        """An attestation came, or the chunk was proved on another way."""
        if self.landed.pop(index, None) is not None:
            self.provable.add(index)

    def take_map(self, node: bytes, first: int, hashes: bytes) -> bytes | None:
        """A part of the chunk map; all of it once it is complete."""
        asked = self.map_asked
        if asked is None or asked.node != node or first * SHA1 != len(asked.hashes):
            return None
        asked.hashes += hashes
        if len(asked.hashes) < SHA1 * self.exchange.count:
            return None
        self.map_asked = None
        return bytes(asked.hashes) if len(asked.hashes) == SHA1 * self.exchange.count else None

    def close_scratch(self) -> None:
        """Let go of the scratch file; nothing of libtorrent uses it any more."""
        fd, self.scratch = self.scratch, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Let go of all files."""
        self.close_scratch()
        fd, self.source = self.source, -1
        if fd >= 0:
            os.close(fd)
