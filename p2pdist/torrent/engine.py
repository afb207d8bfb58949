"""The BitTorrent engine: libtorrent moves the bytes, control links carry what BitTorrent can't, `proving` proves.

Decisions are synchronous steps per event; tasks exist only for dialling, loading torrents and reading files.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog

from p2pdist.errors import OperationError, PeerError, ProtocolError, StorageError
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import EngineStats, Host
from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent import wire
from p2pdist.torrent.alone import Orphaned, bits, choose
from p2pdist.torrent.blame import Sender, Verdict
from p2pdist.torrent.files import sweep
from p2pdist.torrent.links import Link, Links
from p2pdist.torrent.live import COLD, MAPPED, Live, Theirs
from p2pdist.torrent.maps import Maps
from p2pdist.torrent.near import Near
from p2pdist.torrent.proving import Prover
from p2pdist.torrent.session import Remote
from p2pdist.torrent.settings import TorrentSettings
from p2pdist.torrent.torrents import Torrents

_log = structlog.get_logger("p2pdist.torrent")
_MISS = 1.0  # seconds without a piece before what nobody near has is reported
_UNWANTED = 30.0  # seconds after which a stored blob that no neighbour wants is unloaded
_LINGER = 60.0  # seconds that a finished blob is served from the scratch file to those that fetch it
_COUNT = 0.5  # seconds between two looks at libtorrent's counters
_FEW, _MORE = 5, 10  # with fewer neighbours than this, ask for so many
_DEAD = 3.0  # seconds that a silent neighbour's host is shut out, so that libtorrent gives up what it asked there
_WATCH = 120.0  # seconds after a refused chunk in which it is noticed who sends what
_TOGETHER = 0.02  # seconds in which neighbours to dial are collected
_TURN = 0.002  # seconds of a turn of the loop that are spent on answers
_QUESTIONS = 65_536  # attestations that may wait to be sent


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
        self.stats = EngineStats()
        self.settings = settings
        self._node = attestor.node
        self._rng = rng
        self._pool = ThreadPoolExecutor(1, "torrent")  # one thread: what is asked of it happens in that order
        self._hashers = ThreadPoolExecutor(1, "torrent-map")
        self._lives: dict[str, Live] = {}  # in the order in which they are fetched
        self._seeds: OrderedDict[str, Live] = OrderedDict()  # stored blobs with torrents, the longest unwanted first
        self._next_number = 1
        self._near = Near()
        self._links = Links(self._node, settings, self)
        self._torrents = Torrents(self, settings, _peer_id(self._node).decode(), self._pool)
        self._maps = Maps(self, self._hashers)
        self._prover = Prover(self, attestor, self._pool, rng, clock)
        self._by_peer_id: dict[bytes, Link] = {}
        self._banned: dict[bytes, float] = {}
        self._blocked: dict[str, float] = {}
        self._questions: deque[tuple[bytes, Live, int]] = deque()
        self._orphaned: Orphaned | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._asked_more = 0.0
        self._counted = 0.0
        self._refused_at = 0.0
        self._stopped = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns. OperationError if that can't be, StorageError from the directory."""
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        await self._loop.run_in_executor(self._pool, sweep, self.settings.directory)
        await self._scope.start()
        self._prover.start(self._scope)
        self._maps.start(self._scope)
        try:
            port = await self._links.start(self._scope)
            await self._torrents.start(port, self._scope)
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
        self._torrents.halt()
        for live in list(self._lives.values()):
            self.remove(live.exchange)
        self._links.stop()
        await self._scope.stop()
        await self._torrents.stop()
        for pool in (self._pool, self._hashers):
            await asyncio.to_thread(pool.shutdown)

    @property
    def port(self) -> int:
        """Where its control links come in; BitTorrent is on the two ports behind it."""
        return self._links.port

    # --- swarms --------------------------------------------------------------------------------------------------

    def add(self, exchange: Exchange) -> None:
        """Take part in this blob's swarm; exchanges added earlier are fetched first."""
        old = self._lives.get(exchange.name)
        if old is not None:
            self.remove(old.exchange)
        if not exchange.size:
            return  # there is nothing to move, and BitTorrent knows no empty torrents
        live = Live(exchange, self._next_number, self._loop.time())
        self._next_number += 1
        self._lives[exchange.name] = live
        exchange.listeners.append(self._proved_somehow)
        self._open(live)
        for node, theirs in self._near.of(live):
            self._meet(live, node, theirs)
        self._torrents.settle(live)

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""
        live = self._lives.get(exchange.name)
        if live is None or live.exchange is not exchange:
            return
        del self._lives[exchange.name]
        self._seeds.pop(exchange.name, None)
        exchange.listeners.remove(self._proved_somehow)
        live.gone = True
        live.want = 0
        self._torrents.settle(live)
        for link in self._links.neighbours.values():
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
        self._orphaned = None if nodes is None else Orphaned(self._loop.time(), nodes)

    def _find(self, exchange: Exchange) -> Live | None:
        live = self._lives.get(exchange.name)
        return live if live is not None and live.exchange is exchange else None

    # --- links ---------------------------------------------------------------------------------------------------

    def link(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, on top of those there are."""
        for peer in peers:
            if self.admits(peer.node):
                self._links.dial(peer.host, peer.port, peer.node)

    def links(self) -> list[PeerInfo]:
        """The neighbours there are."""
        return [link.peer for link in self._links.neighbours.values() if link.peer is not None]

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while; its host, too: BitTorrent knows nothing else of a peer."""
        until = self._loop.time() + seconds
        self._banned[peer] = until
        link = self._links.neighbours.get(peer)
        if link is not None:
            self._block(link.host, until)
            link.close(PeerError("banned", peer=peer.hex()))

    def _block(self, host: str, until: float) -> None:
        self._blocked[host] = max(until, self._blocked.get(host, 0.0))
        self._apply_blocks()

    def _apply_blocks(self) -> None:
        for session in self._torrents.sessions.values():
            session.block(self._blocked)

    def admits(self, node: bytes) -> bool:
        """See `LinksOwner`."""
        return node != self._node and self._banned.get(node, 0.0) <= self._loop.time()

    def linked(self, link: Link) -> None:
        """See `LinksOwner`."""
        self._by_peer_id[_peer_id(link.node)] = link
        for live in self._lives.values():
            link.send(self._open_frame(live))

    def unlinked(self, link: Link, why: Exception | None) -> None:
        """See `LinksOwner`."""
        _log.debug("link lost", peer=link.node.hex()[:12], error=str(why))
        if self._by_peer_id.get(_peer_id(link.node)) is link:
            del self._by_peer_id[_peer_id(link.node)]
        self._near.gone(link.node)
        for live in self._lives.values():
            live.dialled.discard(link.node)
            live.edges.discard(link.node)
            self._maps.gone(live, link.node)

    def _dead(self, node: bytes, host: str) -> None:
        self.stats.stalls += 1
        if all(link.host != host for link in self._links.neighbours.values()):
            self._block(host, self._loop.time() + _DEAD)
        self._host.peer_dead(node)

    def found(self, host: str, port: int) -> None:
        """See `TorrentsOwner`."""
        self._links.dial(host, port, None)

    def send(self, node: bytes, frame: wire.AnyFrame) -> None:
        """A frame to a neighbour, if it is there."""
        link = self._links.neighbours.get(node)
        if link is not None:
            link.send(frame)

    def _open(self, live: Live) -> None:
        frame = self._open_frame(live)
        for link in self._links.neighbours.values():
            link.send(frame)

    def _open_frame(self, live: Live) -> wire.Open:
        exchange = live.exchange
        have = live.sound if live.fetching else exchange.full
        bitmap = have.to_bytes((exchange.count + 7) // 8, "little")
        return wire.Open(live.number, exchange.name, exchange.size, exchange.chunk_size, bitmap, live.torrents)

    # --- what neighbours say -------------------------------------------------------------------------------------

    def link_frame(self, link: Link, frame: wire.AnyFrame) -> None:
        """See `LinksOwner`."""
        node = link.node
        if isinstance(frame, wire.Open):
            self._heard_open(node, frame)
            return
        if isinstance(frame, (wire.Hello, wire.Alive)):
            return
        if isinstance(frame, wire.Have):
            theirs = self._near.has(node, frame.number, frame.index, claims=True)
        elif isinstance(frame, wire.Close):
            theirs = self._near.closed(node, frame.number)
        else:
            theirs = self._near.find(node, frame.number)
        live = self._lives.get(theirs.digest) if theirs is not None else None
        if theirs is not None and live is not None and live.fits(theirs):
            self._heard(link, live, frame)

    def _heard(self, link: Link, live: Live, frame: wire.AnyFrame) -> None:
        node = link.node
        match frame:
            case wire.Have():
                if live.arrived >> frame.index & 1:
                    self._prover.ask(live, frame.index)
            case wire.Close():
                live.dialled.discard(node)
                live.edges.discard(node)
                self._maps.gone(live, node)
            case wire.Bad():
                if frame.index < live.exchange.count:
                    live.blame.disowned(node, frame.index)
            case wire.Need():
                self._questioned(link, live, frame.indexes)
            case wire.Proof():
                self._heard_proof(live, node, frame)
            case wire.Dial():
                live.edges.add(node)
            case wire.Claim():
                live.claims[frame.index] = self._loop.time()
            case wire.NeedMap():
                self._maps.asked(live, node)
            case wire.MapPart():
                self._maps.part(live, node, frame)
            case _:
                raise ProtocolError("a frame out of place")

    def _heard_open(self, node: bytes, frame: wire.Open) -> None:
        theirs = self._near.opened(node, frame)
        live = self._lives.get(frame.digest)
        if live is None or (live.exchange.stored and not live.fits(theirs)):
            self._host.wanted_by_peer(frame.digest, frame.size, frame.chunk_size)
        elif live.fits(theirs):
            self._meet(live, node, theirs)

    def _meet(self, live: Live, node: bytes, theirs: Theirs) -> None:
        if not live.fetching and not theirs.whole:
            live.wanted_at = self._loop.time()
            if theirs.torrents == MAPPED:
                self._maps.serve(live)
            else:
                self.wants(live, COLD)
        self._maps.met(live, node, theirs)
        if not theirs.torrents & live.torrents:
            live.dialled.discard(node)
            live.edges.discard(node)
        self._connect(live)

    def _connect(self, live: Live) -> None:
        """Dial a few of the neighbours whose torrent is the one that this node has, together."""
        if not live.dialling and self._to_dial(live):
            live.dialling = True
            self._loop.call_later(_TOGETHER, self._dial, live)

    def _to_dial(self, live: Live) -> list[bytes]:
        loaded = live.current
        if loaded is None or not live.unfinished or len(live.dialled) >= self.settings.dials:
            return []
        return [
            node
            for node, theirs in self._near.of(live)
            if theirs.torrents & loaded.kind
            and node not in live.dialled
            and node not in live.edges
            and not (theirs.whole and live.map_asked is not None)
        ]

    def _dial(self, live: Live) -> None:
        live.dialling = False
        free = [] if live.gone else self._to_dial(live)
        self._rng.shuffle(free)
        peers: list[tuple[str, int]] = []
        for node in free[: self.settings.dials - len(live.dialled)]:
            link = self._links.neighbours[node]
            if link.peer is not None:
                live.dialled.add(node)
                link.send(wire.Dial(live.number))
                peers.append((link.host, link.peer.port))
        self._torrents.connect(live, peers)

    # --- attestations --------------------------------------------------------------------------------------------

    def _questioned(self, link: Link, live: Live, indexes: list[int]) -> None:
        if len(self._questions) + len(indexes) > _QUESTIONS:
            raise ProtocolError("too many attestations asked for")
        if not self._questions:
            self._loop.call_soon(self._answer)
        self._questions.extend((link.node, live, index) for index in indexes if index < live.exchange.count)

    def _answer(self) -> None:
        """A few attestations per turn of the loop: making one may mean to hash a chunk."""
        until = self._loop.time() + _TURN
        while self._questions:
            self._answer_one(*self._questions.popleft())
            if self._loop.time() > until:
                break
        if self._questions:
            self._loop.call_soon(self._answer)

    def _answer_one(self, node: bytes, live: Live, index: int) -> None:
        if live.gone or node not in self._links.neighbours:
            return
        packed = None
        if live.exchange.have >> index & 1:
            try:
                packed = live.exchange.attestation(index)
            except (OSError, StorageError) as error:
                _log.warning("a chunk can't be attested", digest=live.exchange.name, error=str(error))
        self.send(node, wire.Proof(live.number, index, packed or b""))

    def _heard_proof(self, live: Live, node: bytes, frame: wire.Proof) -> None:
        if not frame.attestation:
            theirs = dict(self._near.of(live)).get(node)
            if theirs is not None:
                theirs.have &= ~(1 << frame.index)
                theirs.whole = False
        elif node in live.needs.get(frame.index, {}) and not live.exchange.have >> frame.index & 1:
            live.proofs.setdefault(frame.index, {})[node] = frame.attestation
            live.learnt(frame.index)
            self._prover.pump(live)

    def claimants(self, live: Live, index: int) -> list[bytes]:
        """See `ProverOwner`."""
        return self._near.claimants(live, index)

    def need(self, node: bytes, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        self.send(node, wire.Need(live.number, [index]))

    def proved(self, live: Live, index: int, data: bytes) -> None:
        """See `ProverOwner`."""
        self.stats.chunks_in += 1
        live.proofs.pop(index, None)
        live.needs.pop(index, None)
        for verdict in live.blame.proved(index, data):
            self._condemn(live, verdict)
        if live.sound >> index & 1:
            self.sound(live, index)
        else:
            self._torrents.give(live, index)

    def sound(self, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        frame = wire.Have(live.number, index)
        for node, theirs in self._near.of(live):
            if not theirs.whole:
                self.send(node, frame)

    def unsound(self, live: Live, index: int) -> None:
        """See `ProverOwner`."""
        self._disown(live, index)

    def refused(self, live: Live, index: int, data: bytes) -> None:
        """See `ProverOwner`."""
        self.stats.refused += 1
        _log.warning("a chunk is refused", digest=live.exchange.name, chunk=index)
        self._torrents.watch(True)  # from now on it is seen who sends what
        self._refused_at = self._loop.time()
        self._disown(live, index)
        verdict = live.blame.refused(index, data, self._loop.time())
        if verdict is not None:
            self._condemn(live, verdict)

    def _disown(self, live: Live, index: int) -> None:
        for node, _ in self._near.of(live):
            self.send(node, wire.Bad(live.number, index))
        self._torrents.load_anew(live)

    def misattested(self, live: Live, index: int, node: bytes, why: str) -> None:
        """See `ProverOwner`."""
        self.stats.refused += 1
        link = self._links.neighbours.get(node)
        self._condemn(live, Verdict(Sender(node, link.host if link is not None else ""), index, why))

    def _condemn(self, live: Live, verdict: Verdict) -> None:
        sender = verdict.sender
        _log.warning("a peer is left alone", peer=sender.node.hex()[:12], host=sender.host, error=verdict.why)
        if sender.host:
            self._block(sender.host, self._loop.time() + self.settings.ban)
        if sender.node:
            self.ban(sender.node, self.settings.ban)
            self._maps.distrusted(live, sender.node)
            self._host.peer_lied(sender.node, live.exchange, verdict.index, verdict.why)

    # --- what libtorrent says ------------------------------------------------------------------------------------

    def torrents_changed(self, live: Live) -> None:
        """See `TorrentsOwner`."""
        if not live.gone:
            self._open(live)
            self._connect(live)

    def arrived(self, live: Live, index: int) -> None:
        """See `TorrentsOwner`."""
        self._prover.ask(live, index)

    def flushed(self, live: Live) -> None:
        """See `TorrentsOwner`."""
        self._prover.pump(live)

    def who(self, remote: Remote) -> Sender:
        """See `TorrentsOwner`."""
        link = self._by_peer_id.get(remote.peer_id)
        known = link is not None and link.host == remote.host
        return Sender(link.node if link is not None and known else b"", remote.host)

    def claims(self, live: Live, sender: Sender, index: int) -> bool:
        """See `TorrentsOwner`."""
        return bool(sender.node) and sender.node in self._near.claimants(live, index)

    def wants(self, live: Live, torrents: int) -> None:
        """These torrents should be loaded: instead of what is, while the blob is fetched, else on top of it."""
        if live.gone:
            return
        if live.fetching:
            live.want = torrents
        else:
            live.want |= torrents
            self._seeds[live.exchange.name] = live
            self._seeds.move_to_end(live.exchange.name)
            while len(self._seeds) > self.settings.max_torrents:
                self._unwant(self._seeds.popitem(last=False)[1])
        self._torrents.settle(live)

    def _unwant(self, live: Live) -> None:
        self._seeds.pop(live.exchange.name, None)
        live.want = 0
        self._torrents.settle(live)

    def _proved_somehow(self, exchange: Exchange, index: int) -> None:
        """A chunk is proved, by the prover or by a read from upstream."""
        live = self._find(exchange)
        if live is None:
            return
        live.read(index, self._loop.time())
        if live.looking != index:
            live.learnt(index)
            self._torrents.give(live, index)
            self._prover.pump(live)

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._loop.time()
        self._links.look_after(now, self._dead)
        if any(until <= now for until in self._blocked.values()):
            self._blocked = {host: until for host, until in self._blocked.items() if until > now}
            self._apply_blocks()
        for live in list(self._lives.values()):
            if live.fetching:
                self._look_at(live, now)
            elif live.want and now - live.wanted_at > _UNWANTED:
                if self._near.unfinished(live):
                    live.wanted_at = now
                else:
                    self._unwant(live)
        busy = any(live.unfinished for live in self._lives.values())
        if busy:
            self._look_for_more(now)
        if self._torrents.watched and now - self._refused_at > _WATCH:
            self._torrents.watch(False)
        if now - self._counted >= _COUNT:
            self._counted = now
            self._count()
        self._ticking = self._loop.call_later(self.settings.tick if busy else self.settings.alive / 2, self._tick)

    def _look_at(self, live: Live, now: float) -> None:
        if live.retry_at is not None and live.retry_at <= now:
            live.retry_at = None
            self._torrents.settle(live)
        for verdict in live.blame.overdue(now):
            self._condemn(live, verdict)
        if live.exchange.stored:
            if not self._near.unfinished(live) or now - live.moved > _LINGER:
                live.fetching = False
                live.dirty = True
                live.want = 0
                self._torrents.settle(live)
            return
        for index, given in list(live.given.items()):
            if now - given > 2.0:
                self._torrents.give(live, index)
        self._torrents.flush(live, now)
        self._prover.look_again(live)
        self._maps.look(live, now)
        self._connect(live)

    def _look_for_more(self, now: float) -> None:
        if len(self._links.neighbours) < _FEW and now - self._asked_more > 1.0:
            self._asked_more = now
            self._host.neighbours_wanted(_MORE)
        reading = any(live.leased for live in self._lives.values())
        for live in list(self._lives.values()):
            if not live.unfinished:
                continue
            lost = live.exchange.full & ~live.exchange.have & ~self._near.claimed(live)
            if lost and not live.leased and now - max(live.moved, live.missed_at) > _MISS:
                live.missed_at = now
                self._host.chunks_missing(live.exchange, list(bits(lost))[:64])
            if self._orphaned is not None and not reading:
                reading = self._read_alone(live, lost & ~live.arrived, now, self._orphaned)

    def _read_alone(self, live: Live, wanted: int, now: float, orphaned: Orphaned) -> bool:
        rivals = self._near.unfinished(live)
        mine = choose(
            live.exchange.name, wanted, rivals, live.claims, live.chunk_time, now, orphaned, self._node, self._rng
        )
        if mine is None:
            return False
        for node, _ in self._near.of(live):
            self.send(node, wire.Claim(live.number, mine))
        self._host.read_alone(live.exchange, mine)
        return True

    def _count(self) -> None:
        totals = [session.counters for session in self._torrents.sessions.values()]
        self.stats.bytes_in = sum(total.get("net.recv_payload_bytes", 0) for total in totals)
        self.stats.bytes_out = sum(total.get("net.sent_payload_bytes", 0) for total in totals)
        self.stats.bytes_redundant = sum(total.get("net.recv_redundant_bytes", 0) for total in totals)
        for session in self._torrents.sessions.values():
            session.post_counters()


def _peer_id(node: bytes) -> bytes:
    """The BitTorrent peer id of a node: 20 ASCII characters of its id."""
    return node.hex()[:20].encode()
