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

from p2pdist.errors import OperationError
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import EngineStats, Host
from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent import wire
from p2pdist.torrent.alone import Orphaned
from p2pdist.torrent.announcing import Announcer, open_frame
from p2pdist.torrent.blame import Sender, Verdict
from p2pdist.torrent.dials import Dials
from p2pdist.torrent.files import sweep
from p2pdist.torrent.hearing import Hearing
from p2pdist.torrent.justice import Justice
from p2pdist.torrent.links import Link, Links
from p2pdist.torrent.live import Live
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
        self._announcer = Announcer(parts)
        self._justice = Justice(parts)
        self._dials = Dials(parts)
        self._seeds = Seeds(parts)
        self._hearing = Hearing(parts, self._dials, self._seeds)
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
        self._announcer.stop()
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
        self._announcer.opened(live)
        for node, theirs in self._parts.near.of(live):
            self._hearing.meet(live, node, theirs)
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
            link.send(open_frame(live))

    def link_frame(self, link: Link, frame: wire.AnyFrame) -> None:
        """See `LinksOwner`."""
        self._hearing.frame(link, frame)

    def unlinked(self, link: Link, why: Exception | None) -> None:
        """See `LinksOwner`."""
        _log.debug("link lost", peer=link.node.hex()[:12], error=str(why))
        if self._by_peer_id.get(_peer_id(link.node)) is link:
            del self._by_peer_id[_peer_id(link.node)]
        self._parts.near.gone(link.node)
        for live in self._parts.lives.values():
            self._hearing.left(live, link.node)

    def found(self, host: str, port: int) -> None:
        """See `TorrentsOwner`."""
        self._parts.links.dial(host, port, None)

    def send(self, node: bytes, frame: wire.AnyFrame) -> None:
        """See `MapsOwner`."""
        self._parts.send(node, frame)

    # --- what the prover says ------------------------------------------------------------------------------------

    def claimants(self, live: Live, index: int) -> list[bytes]:
        """See `ProverOwner`."""
        return self._parts.near.claimants(live, index)

    def need(self, node: bytes, live: Live, indexes: list[int]) -> None:
        """See `ProverOwner`."""
        for start in range(0, len(indexes), wire.MAX_NEEDS):
            self._parts.send(node, wire.Need(live.number, indexes[start : start + wire.MAX_NEEDS]))

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
            self._parts.torrents.pieces.give(live, index)

    def sound(self, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        self._announcer.sound(live, index)

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
            self._announcer.opened(live)
            self._dials.look(live)

    def dropped(self, live: Live, indexes: Iterable[int]) -> None:
        """See `TorrentsOwner`."""
        for index in indexes:
            self._parts.tell(live, wire.Bad(live.number, index))

    def arrived(self, live: Live, indexes: Iterable[int]) -> None:
        """See `TorrentsOwner`."""
        self._parts.prover.ask(live, indexes)

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
            self._announcer.entered(live, index)
            live.learnt(index)
            self._parts.torrents.pieces.give(live, index)
            self._parts.prover.pump(live)


def _peer_id(node: bytes) -> bytes:
    """The BitTorrent peer id of a node: 20 ASCII characters of its id."""
    return node.hex()[:20].encode()
