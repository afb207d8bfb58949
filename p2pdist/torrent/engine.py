"""The BitTorrent engine: libtorrent moves the bytes, control links carry what BitTorrent can't, `proving` proves.

Decisions are synchronous steps per event; tasks exist only for dialling, loading torrents and reading files.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog

from p2pdist.errors import OperationError, ProtocolError
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import EngineStats, Host
from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent import wire
from p2pdist.torrent.alone import Orphaned
from p2pdist.torrent.answers import Answers
from p2pdist.torrent.blame import Sender, Verdict
from p2pdist.torrent.dials import Dials
from p2pdist.torrent.files import sweep
from p2pdist.torrent.justice import Justice
from p2pdist.torrent.links import Link, Links
from p2pdist.torrent.live import COLD, MAPPED, Live, Theirs
from p2pdist.torrent.maps import Maps
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.proving import Prover
from p2pdist.torrent.seeds import Seeds
from p2pdist.torrent.session import Remote
from p2pdist.torrent.settings import TorrentSettings
from p2pdist.torrent.torrents import Torrents
from p2pdist.torrent.upkeep import Upkeep

_log = structlog.get_logger("p2pdist.torrent")


class TorrentEngine:
    """See `swarm.engine.Engine`."""

    name = "bittorrent"

    def __init__(
        self,
        attestor: Attestor,
        settings: TorrentSettings,
        rng: random.Random,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.discovery = settings.discovery if settings.discover else 0.0
        self._pool = ThreadPoolExecutor(1, "torrent")  # one thread: what is asked of it happens in that order
        self._hashers = ThreadPoolExecutor(1, "torrent-map")
        self._next_number = 1
        self._by_peer_id: dict[bytes, Link] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._stopped = False
        parts = self._parts = Parts(settings, attestor.node, rng)
        parts.links = Links(parts.node, settings, self)
        parts.torrents = Torrents(self, settings, _peer_id(parts.node).decode(), self._pool)
        parts.maps = Maps(self, self._hashers)
        parts.prover = Prover(self, attestor, self._pool, rng, clock)
        self._answers = Answers(parts)
        self._justice = Justice(parts)
        self._dials = Dials(parts)
        self._seeds = Seeds(parts)
        self._upkeep = Upkeep(parts, self._seeds, self._dials, self._justice)

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns. OperationError if that can't be, StorageError from the directory."""
        parts = self._parts
        parts.host = host
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        await self._loop.run_in_executor(self._pool, sweep, self.settings.directory)
        await self._scope.start()
        parts.prover.start(self._scope)
        parts.maps.start(self._scope)
        try:
            port = await parts.links.start(self._scope)
            await parts.torrents.start(port, self._scope)
        except OperationError:
            await self.stop()
            raise
        self._ticking = self._loop.call_later(self.settings.tick, self._tick)

    async def stop(self) -> None:
        """Leave all swarms, close every link; nothing of it runs afterwards."""
        if self._stopped:
            return
        self._stopped = True
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        self._parts.torrents.halt()
        for live in list(self._parts.lives.values()):
            self.remove(live.exchange)
        self._parts.links.stop()
        await self._scope.stop()
        await self._parts.torrents.stop()
        for pool in (self._pool, self._hashers):
            await asyncio.to_thread(pool.shutdown)

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(self._upkeep.look(self._loop.time()), self._tick)

    @property
    def stats(self) -> EngineStats:
        """Counters; what libtorrent counts is up to half a second old."""
        return self._parts.stats

    @property
    def port(self) -> int:
        """Where its control links come in; BitTorrent is on the two ports behind it."""
        return self._parts.links.port

    # --- swarms --------------------------------------------------------------------------------------------------

    def add(self, exchange: Exchange) -> None:
        """Take part in this blob's swarm; exchanges added earlier are fetched first."""
        old = self._parts.lives.get(exchange.name)
        if old is not None:
            self.remove(old.exchange)
        if not exchange.size:
            return  # there is nothing to move, and BitTorrent knows no empty torrents
        live = Live(exchange, self._next_number, self._loop.time())
        self._next_number += 1
        self._parts.lives[exchange.name] = live
        exchange.listeners.append(self._proved_somehow)
        self._open(live)
        for node, theirs in self._parts.near.of(live):
            self._meet(live, node, theirs)
        self._parts.torrents.settle(live)

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""
        live = self._parts.lives.get(exchange.name)
        if live is None or live.exchange is not exchange:
            return
        del self._parts.lives[exchange.name]
        self._seeds.drop(live)
        exchange.listeners.remove(self._proved_somehow)
        live.gone = True
        live.want = 0
        self._parts.torrents.settle(live)
        for link in self._parts.links.neighbours.values():
            link.send(wire.Close(live.number))

    def leased(self, exchange: Exchange, index: int) -> bool:
        """This node is about to read chunk `index` from upstream; False: no need, it is here."""
        if exchange.have >> index & 1:
            return False
        live = self._find(exchange)
        if live is not None:
            live.leased[index] = self._loop.time()
        return True

    def unleased(self, exchange: Exchange, index: int) -> None:
        """The read is over."""
        live = self._find(exchange)
        if live is not None:
            live.leased.pop(index, None)

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a leased chunk is here: nothing that a BitTorrent peer could be told."""

    def orphaned(self, nodes: int | None) -> None:
        """The tracker went away when the cluster had `nodes` nodes; None: it is back."""
        self._upkeep.orphaned = None if nodes is None else Orphaned(self._loop.time(), nodes)

    def _find(self, exchange: Exchange) -> Live | None:
        live = self._parts.lives.get(exchange.name)
        return live if live is not None and live.exchange is exchange else None

    # --- links ---------------------------------------------------------------------------------------------------

    def link(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, on top of those there are."""
        for peer in peers:
            if self.admits(peer.node):
                self._parts.links.dial(peer.host, peer.port, peer.node)

    def links(self) -> list[PeerInfo]:
        """The neighbours there are."""
        return [link.peer for link in self._parts.links.neighbours.values() if link.peer is not None]

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while; its host, too: BitTorrent knows nothing else of a peer."""
        self._justice.ban(peer, seconds)

    def admits(self, node: bytes) -> bool:
        """See `LinksOwner`."""
        return self._justice.admits(node)

    def linked(self, link: Link) -> None:
        """See `LinksOwner`."""
        self._by_peer_id[_peer_id(link.node)] = link
        for live in self._parts.lives.values():
            link.send(_open_frame(live))

    def unlinked(self, link: Link, why: Exception | None) -> None:
        """See `LinksOwner`."""
        _log.debug("link lost", peer=link.node.hex()[:12], error=str(why))
        if self._by_peer_id.get(_peer_id(link.node)) is link:
            del self._by_peer_id[_peer_id(link.node)]
        self._parts.near.gone(link.node)
        for live in self._parts.lives.values():
            self._left(live, link.node)

    def _left(self, live: Live, node: bytes) -> None:
        live.blame.left(node)
        self._dials.gone(live, node)
        self._parts.maps.gone(live, node)

    def found(self, host: str, port: int) -> None:
        """See `TorrentsOwner`."""
        self._parts.links.dial(host, port, None)

    def send(self, node: bytes, frame: wire.AnyFrame) -> None:
        """See `MapsOwner`."""
        self._parts.send(node, frame)

    def _open(self, live: Live) -> None:
        frame = _open_frame(live)
        for link in self._parts.links.neighbours.values():
            link.send(frame)

    # --- what neighbours say -------------------------------------------------------------------------------------

    def link_frame(self, link: Link, frame: wire.AnyFrame) -> None:
        """See `LinksOwner`."""
        node, near = link.node, self._parts.near
        if isinstance(frame, wire.Open):
            self._heard_open(node, frame)
            return
        if isinstance(frame, (wire.Hello, wire.Alive)):
            return
        if isinstance(frame, wire.Have):
            theirs = near.has(node, frame.number, frame.index, claims=True)
        elif isinstance(frame, wire.Proof) and not frame.attestation:
            theirs = near.has(node, frame.number, frame.index, claims=False)
        elif isinstance(frame, wire.Close):
            theirs = near.closed(node, frame.number)
        else:
            theirs = near.find(node, frame.number)
        live = self._parts.lives.get(theirs.digest) if theirs is not None else None
        if theirs is not None and live is not None and live.fits(theirs):
            self._heard(node, live, frame)

    def _heard(self, node: bytes, live: Live, frame: wire.AnyFrame) -> None:
        match frame:
            case wire.Have():
                if live.arrived >> frame.index & 1:
                    self._parts.prover.ask(live, frame.index)
            case wire.Close():
                self._left(live, node)
            case wire.Bad():
                if frame.index < live.exchange.count:
                    live.blame.disowned(node, frame.index)
            case wire.Need():
                self._answers.asked(node, live, frame.indexes)
            case wire.Proof():
                self._heard_proof(node, live, frame)
            case wire.Dial():
                live.edges.add(node)
            case wire.Claim():
                live.claims[frame.index] = self._loop.time()
            case wire.NeedMap():
                self._parts.maps.asked(live, node)
            case wire.MapPart():
                self._parts.maps.part(live, node, frame)
            case _:
                raise ProtocolError("a frame out of place")

    def _heard_open(self, node: bytes, frame: wire.Open) -> None:
        theirs = self._parts.near.opened(node, frame)
        live = self._parts.lives.get(frame.digest)
        if live is None or (live.exchange.stored and not live.fits(theirs)):
            self._parts.host.wanted_by_peer(frame.digest, frame.size, frame.chunk_size)
        elif live.fits(theirs):
            self._meet(live, node, theirs)

    def _meet(self, live: Live, node: bytes, theirs: Theirs) -> None:
        if not live.fetching and not theirs.whole:
            live.wanted_at = self._loop.time()
            if theirs.torrents == MAPPED:
                self._parts.maps.serve(live)
            else:
                self._seeds.want(live, COLD)
        self._parts.maps.met(live, node, theirs)
        if not theirs.torrents & live.torrents:
            self._dials.gone(live, node)
        self._dials.look(live)

    def _heard_proof(self, node: bytes, live: Live, frame: wire.Proof) -> None:
        wanted = node in live.needs.get(frame.index, ()) and not live.exchange.have >> frame.index & 1
        if frame.attestation and wanted:
            live.proofs.setdefault(frame.index, {})[node] = frame.attestation
            live.learnt(frame.index)
            self._parts.prover.pump(live)

    # --- what the prover says ------------------------------------------------------------------------------------

    def claimants(self, live: Live, index: int) -> list[bytes]:
        """See `ProverOwner`."""
        return self._parts.near.claimants(live, index)

    def need(self, node: bytes, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        self._parts.send(node, wire.Need(live.number, [index]))

    def proved(self, live: Live, index: int, data: bytes) -> None:
        """See `ProverOwner`."""
        self._parts.stats.chunks_in += 1
        live.proofs.pop(index, None)
        live.needs.pop(index, None)
        for verdict in live.blame.proved(index, data, self._loop.time()):
            self._justice.condemn(live, verdict)
        if live.sound >> index & 1:
            self.sound(live, index)
        else:
            self._parts.torrents.give(live, index)

    def sound(self, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        if live.sound == live.exchange.full:
            self._open(live)  # to all: those that have all do not listen for single chunks
            return
        frame = wire.Have(live.number, index)
        for node, theirs in self._parts.near.of(live):
            if not theirs.whole:
                self._parts.send(node, frame)

    def unsound(self, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        self._justice.disown(live, index)

    def refused(self, live: Live, index: int, data: bytes) -> None:
        """See `ProverOwner`."""
        self._justice.refused(live, index, data)

    def misattested(self, live: Live, index: int, node: bytes, why: str) -> None:
        """See `ProverOwner`."""
        self._parts.stats.refused += 1
        link = self._parts.links.neighbours.get(node)
        sender = Sender(node, link.host if link is not None else "")
        self._justice.condemn(live, Verdict(sender, index, why, certain=True))

    # --- what libtorrent says ------------------------------------------------------------------------------------

    def torrents_changed(self, live: Live) -> None:
        """See `TorrentsOwner`."""
        if not live.gone:
            self._open(live)
            self._dials.look(live)

    def dropped(self, live: Live, indexes: Iterable[int]) -> None:
        """See `TorrentsOwner`."""
        for index in indexes:
            self._parts.tell(live, wire.Bad(live.number, index))

    def arrived(self, live: Live, index: int) -> None:
        """See `TorrentsOwner`."""
        self._parts.prover.ask(live, index)

    def flushed(self, live: Live) -> None:
        """See `TorrentsOwner`."""
        self._parts.prover.pump(live)

    def who(self, remote: Remote) -> Sender:
        """See `TorrentsOwner`."""
        link = self._by_peer_id.get(remote.peer_id)
        known = link is not None and link.host == remote.host
        return Sender(link.node if link is not None and known else b"", remote.host)

    def claims(self, live: Live, sender: Sender, index: int) -> bool:
        """See `TorrentsOwner`."""
        return bool(sender.node) and sender.node in self._parts.near.claimants(live, index)

    def wants(self, live: Live, torrents: int) -> None:
        """See `MapsOwner`."""
        if live.gone:
            return
        if live.fetching:
            live.want = torrents
            self._parts.torrents.settle(live)
        else:
            self._seeds.want(live, torrents)

    def _proved_somehow(self, exchange: Exchange, index: int) -> None:
        """A chunk is proved, by the prover or by a read from upstream."""
        live = self._find(exchange)
        if live is None:
            return
        live.read(index, self._loop.time())
        if live.looking != index:
            live.learnt(index)
            self._parts.torrents.give(live, index)
            self._parts.prover.pump(live)


def _open_frame(live: Live) -> wire.Open:
    exchange = live.exchange
    have = live.sound if live.fetching else exchange.full
    bitmap = have.to_bytes((exchange.count + 7) // 8, "little")
    return wire.Open(live.number, exchange.name, exchange.size, exchange.chunk_size, bitmap, live.torrents)


def _peer_id(node: bytes) -> bytes:
    """The BitTorrent peer id of a node: 20 ASCII characters of its id."""
    return node.hex()[:20].encode()
