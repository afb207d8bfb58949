"""The mesh engine: carries out what `decide` decides, over control links and data connections.

All state changes happen in one synchronous step per event; tasks exist only for dialling. A transfer that brings no
byte for too long, a link that is silent, and a peer that sends what is not attested are dropped and reported.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from p2pdist.errors import PeerError, ProtocolError, SignerRefused, StorageError
from p2pdist.mesh.carrying import Carrier
from p2pdist.mesh.control import ControlLink, OpenBlob
from p2pdist.mesh.decide import Ask, Decisions, Turn, bits
from p2pdist.mesh.fetching import Fetch, Outbound
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.neighbours import DIAL, MeshSettings, Neighbours
from p2pdist.mesh.network import Listener, Network
from p2pdist.mesh.serving import Inbound
from p2pdist.mesh.wire import AnyFrame, Claim, Close, Have, Head, Open, bitmap, encode, mask
from p2pdist.protocol.chunks import chunk_range, valid_chunk_size
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.attest import from_header
from p2pdist.swarm.engine import EngineStats, Host
from p2pdist.swarm.exchange import Exchange, Receiver

__all__ = ["MeshEngine", "MeshSettings"]

_log = structlog.get_logger("p2pdist.mesh")
_IN_VAIN = 3.0  # seconds in which at least ...
_WORTH = 64 * 1024  # ... so many bytes come from neighbours that say they have what we lack
_BAN = 60.0  # seconds that a peer which sent wrong bytes is left alone


class MeshEngine:
    """See `swarm.engine.Engine`."""

    name = "mesh"
    discovery = 0.0

    def __init__(
        self,
        node: bytes,
        network: Network,
        settings: MeshSettings,
        rng: random.Random,
        knobs: Knobs | None = None,
        *,
        identify: Callable[[object], bytes | None] | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.settings = settings
        self._node = node
        self._network = network
        self._rng = rng
        self._knobs = knobs or Knobs()
        self._identify = identify
        self._near = Neighbours(self, node, network, settings, self._knobs, identify)
        self._decide: Decisions[bytes] = Decisions(rng, self._knobs, node)
        self._exchanges: dict[str, Exchange] = {}
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._fetches: dict[tuple[bytes, str, int], Fetch] = {}
        self._idle: dict[bytes, list[Outbound]] = {}
        self._inbound: dict[Inbound, bytes] = {}
        self._queued: dict[Inbound, tuple[Exchange, int, int, int]] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._orphaned: tuple[float, int] | None = None
        self._asked_more = 0.0
        self._reading: set[tuple[str, int]] = set()  # chunks on their way from upstream
        self._pace = (0.0, 0)  # when that many bytes had come
        self._complained = 0.0
        self._carrier = Carrier(
            self._reach,
            lambda peer: self._near.dial([peer]),
            self._request_head,
            self._count_in,
            self._refused,
            self._knobs.stall,
        )
        self._pumping = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns."""
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        await self._scope.start()
        self._listener: Listener = await self._network.listen(
            lambda: Inbound(self, self._knobs), self.settings.host, self.settings.port
        )
        self._near.start(self._scope, self._listener.port)

    async def stop(self) -> None:
        """Leave all swarms, close every link; nothing of it runs afterwards."""
        self._listener.close()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for exchange in list(self._exchanges.values()):
            self.remove(exchange)
        self._near.close()
        for connection in list(self._inbound):
            connection.abort()
        for idle in self._idle.values():
            for outbound in idle:
                outbound.close()
        self._idle.clear()
        self._carrier.close()
        await self._scope.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    # --- swarms --------------------------------------------------------------------------------------------------

    def add(self, exchange: Exchange) -> None:
        """Take part in this blob's swarm; exchanges added earlier are fetched first."""
        old = self._exchanges.get(exchange.name)
        if old is not None:
            self.remove(old)
        if all(other.have == other.full for other in self._exchanges.values()):
            self._pace = (self._loop.time(), self.stats.bytes_in)
        self._exchanges[exchange.name] = exchange
        self._numbers[exchange.name] = self._next_number
        self._next_number += 1
        self._decide.add_blob(exchange.name, exchange.count, exchange.have)
        exchange.listeners.append(self._proved)
        for link in self._near.links.values():
            self._open_on(link, exchange)
            for theirs in link.blobs.values():
                self._meet(link, theirs)
        self._pump()

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""
        if self._exchanges.get(exchange.name) is not exchange:
            return
        del self._exchanges[exchange.name]
        number = self._numbers.pop(exchange.name)
        exchange.listeners.remove(self._proved)
        self._reading = {(blob, index) for blob, index in self._reading if blob != exchange.name}
        self._cancel(self._decide.remove_blob(exchange.name))
        for connection, queued in list(self._queued.items()):
            if queued[0] is exchange:
                del self._queued[connection]
                connection.answer(404, "Not Found")
        for link in self._near.links.values():
            link.send(Close(number))

    def leased(self, exchange: Exchange, index: int) -> bool:
        """This node is about to read chunk `index` from upstream; False: no need, it is here."""
        if self._exchanges.get(exchange.name) is not exchange:
            return not exchange.have >> index & 1
        if not self._decide.leased(exchange.name, index):
            return False
        self._reading.add((exchange.name, index))
        return True

    def unleased(self, exchange: Exchange, index: int) -> None:
        """The read is over."""
        self._decide.unleased(exchange.name, index)
        self._take(self._decide.turn())
        self._reading.discard((exchange.name, index))
        if self._orphaned is not None:
            self._loop.call_soon(self._look_for_more, self._loop.time())  # the next chunk need not wait for the tick

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a leased chunk is here."""
        if exchange.name in self._exchanges:
            self._say_have(exchange, index, self._decide.coming(exchange.name, index))

    def orphaned(self, nodes: int | None) -> None:
        """The tracker went away when the cluster had `nodes` nodes; None: it is back."""
        self._orphaned = None if nodes is None else (self._loop.time(), nodes)
        if nodes is not None:
            for link in self._other_zones():
                for exchange in self._exchanges.values():
                    self._open_on(link, exchange)
            self._tick_soon()

    # --- links ---------------------------------------------------------------------------------------------------

    def link(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, on top of those there are."""
        self._near.dial(peers)

    def links(self) -> list[PeerInfo]:
        """The neighbours there are."""
        return [self._near.addresses[node] for node in self._near.links]

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while."""
        self._near.ban(peer, seconds)
        for connection, node in list(self._inbound.items()):
            if node == peer:
                connection.abort()

    def upgrade(self, connection: Inbound, head: Head) -> None:
        """A neighbour wants a control link on this connection."""
        self._near.upgrade(connection, head)
        if connection.taken_over:
            self._inbound.pop(connection, None)

    def link_up(self, link: ControlLink) -> None:
        """A link is open."""
        if not self._near.foreign(link.peer.node):
            self._decide.link_up(link.peer.node)
        for exchange in self._exchanges.values():
            self._open_on(link, exchange)
        self._tick_soon()

    def link_down(self, node: bytes) -> None:
        """It is closed."""
        self._cancel(self._decide.link_down(node))
        for outbound in self._idle.pop(node, []):
            outbound.close()
        self._go_on()
        self._tick_soon()

    def link_dead(self, node: bytes) -> None:
        """It was closed because nothing came any more."""
        self.stats.stalls += 1
        self._host.peer_dead(node)

    def link_ended(self, node: bytes) -> None:
        """It is closed because the neighbour's certificate has ended."""
        self.stats.ended_certificates += 1

    def _open_on(self, link: ControlLink, exchange: Exchange) -> None:
        number = self._numbers[exchange.name]
        have = bitmap(exchange.have, exchange.count)
        link.send(Open(number, exchange.name, exchange.size, exchange.chunk_size, have))

    def link_frame(self, link: ControlLink, frame: AnyFrame) -> None:
        """A frame came."""
        if isinstance(frame, Have):
            self._heard_have(link, frame)
        elif isinstance(frame, Open):
            self._heard_open(link, frame)
        elif isinstance(frame, Close):
            theirs = link.blobs.pop(frame.number, None)
            if theirs is not None:
                self._decide.closed(link.peer.node, theirs.digest)
        elif isinstance(frame, Claim):
            theirs = link.blobs.get(frame.number)
            if theirs is not None:
                self._decide.claimed(theirs.digest, frame.index, self._loop.time())

    def _heard_have(self, link: ControlLink, frame: Have) -> None:
        theirs = link.blobs.get(frame.number)
        if theirs is None:
            return
        theirs.have |= 1 << frame.index
        exchange = self._exchanges.get(theirs.digest)
        if exchange is not None and exchange.chunk_size == theirs.chunk_size:
            if self.settings.zone and self._near.foreign(link.peer.node):
                self._decide.unclaimed(theirs.digest, frame.index)
                return
            self._decide.peer_has(link.peer.node, theirs.digest, frame.index, frame.load, frame.active)
            self._pump_soon()

    def _heard_open(self, link: ControlLink, frame: Open) -> None:
        if not valid_chunk_size(frame.size, frame.chunk_size) or len(link.blobs) >= 4096:
            link.close(ProtocolError(f"an impossible swarm: {frame.size} bytes in chunks of {frame.chunk_size}"))
            return
        theirs = OpenBlob(frame.digest, frame.size, frame.chunk_size, mask(frame.have))
        joins = all(blob.digest != frame.digest for blob in link.blobs.values())
        link.blobs[frame.number] = theirs
        exchange = self._exchanges.get(frame.digest)
        if joins and exchange is not None and exchange.have and exchange.chunk_size == frame.chunk_size:
            # HAVEs go only to those who take part: of what came here before it joined it was told nothing.
            self._open_on(link, exchange)
        if exchange is None or (exchange.stored and exchange.chunk_size != frame.chunk_size):
            self._host.wanted_by_peer(frame.digest, frame.size, frame.chunk_size)
        self._meet(link, theirs)
        self._pump()

    def _meet(self, link: ControlLink, theirs: OpenBlob) -> None:
        exchange = self._exchanges.get(theirs.digest)
        if exchange is not None and (exchange.size, exchange.chunk_size) == (theirs.size, theirs.chunk_size):
            self._decide.opened(link.peer.node, theirs.digest, theirs.have)

    def _say_have(self, exchange: Exchange, index: int, peers: list[bytes]) -> None:
        frame = Have(
            self._numbers[exchange.name],
            index,
            min(65_535, self._decide.load),
            min(65_535, self._decide.downloads),
        )
        data = encode(frame)
        for peer in peers:
            self._near.links[peer].send_encoded(data)
        if self._orphaned is not None:
            for link in self._other_zones():
                link.send_encoded(data)

    # --- fetching ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        self._pumping = False
        self._send(self._decide.pump(self._loop.time()))

    def _pump_soon(self) -> None:
        """Once for all that comes in this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _send(self, asks: list[Ask[bytes]]) -> None:
        for ask in asks:
            fetch = Fetch(ask, self._exchanges[ask.blob])
            self._fetches[ask.peer, ask.blob, ask.index] = fetch
            idle = self._idle.get(ask.peer)
            while idle:
                outbound = idle.pop()
                if outbound.usable and outbound.ends <= time.time():
                    outbound.close()
                elif outbound.usable:
                    outbound.request(fetch, self._request_head())
                    break
            else:
                self._scope.spawn(self._connect(fetch))

    def _request_head(self) -> str:
        return (
            f"P2pdist-Node: {self._node.hex()}\r\nP2pdist-Chunks: {self._decide.chunks}\r\n"
            f"P2pdist-Active: {self._decide.downloads}\r\n"
        )

    async def _connect(self, fetch: Fetch) -> None:
        outbound = Outbound(self)
        try:
            await self._reach(outbound, self._near.addresses[fetch.ask.peer])
        except (OSError, TimeoutError, PeerError) as error:
            outbound.close()
            self.fetch_failed(fetch, error)
            return
        if self._fetches.get((fetch.ask.peer, fetch.ask.blob, fetch.ask.index)) is fetch and outbound.usable:
            outbound.request(fetch, self._request_head())
        else:
            outbound.close()

    async def _reach(self, outbound: Outbound, peer: PeerInfo) -> None:
        async with asyncio.timeout(DIAL):
            await self._network.connect(lambda: outbound, peer.host, peer.port)
        self._check_identity(outbound, peer.node)

    def _check_identity(self, outbound: Outbound, peer: bytes) -> None:
        """What a peer sends is held against it: so it has to be the one."""
        if self._identify is not None and self._identify(outbound.tls) != peer:
            raise PeerError("another node answers at its address", peer=peer.hex())
        outbound.ends = self._near.lifetimes.seen(peer, outbound.tls)

    def _forget_fetch(self, fetch: Fetch) -> bool:
        key = (fetch.ask.peer, fetch.ask.blob, fetch.ask.index)
        if self._fetches.get(key) is not fetch:
            return False
        del self._fetches[key]
        if fetch.receiver is not None:
            self._decide.downloads -= 1
        return True

    def _cancel(self, asks: list[Ask[bytes]]) -> None:
        for ask in asks:
            fetch = self._fetches.get((ask.peer, ask.blob, ask.index))
            if fetch is not None:
                self._abandon(fetch, 0.0)

    def _abandon(self, fetch: Fetch, hold: float) -> None:
        if self._forget_fetch(fetch):
            self._decide.failed(fetch.ask, self._loop.time(), hold=hold)
            if fetch.connection is not None:
                fetch.connection.close()

    def fetch_answered(self, fetch: Fetch, load: int) -> bool:
        """206: the chunk begins to arrive."""
        if fetch.exchange.have >> fetch.ask.index & 1:
            return False
        fetch.began = self._loop.time()
        self._decide.downloads += 1
        return True

    def fetch_progress(self, fetch: Fetch, got: int) -> None:
        """Bytes came."""
        self.stats.bytes_in += got
        ask, receiver = fetch.ask, fetch.receiver
        self._decide.progress(ask.peer, ask.blob, ask.index, self._loop.time())
        if receiver is not None and not fetch.half and 2 * receiver.remaining <= fetch.exchange.length(ask.index):
            fetch.half = True
            self.coming(fetch.exchange, ask.index)

    def fetch_done(self, fetch: Fetch, head: Head) -> None:
        """All bytes of the chunk are in its receiver."""
        ask, receiver, outbound = fetch.ask, fetch.receiver, fetch.connection
        if self._fetches.get((ask.peer, ask.blob, ask.index)) is not fetch or receiver is None:
            return
        fetch.connection = None  # free for the next chunk
        if outbound is not None and ask.peer in self._near.links:
            self._idle.setdefault(ask.peer, []).append(outbound)
        elif outbound is not None:
            outbound.close()
        if receiver.hashed:
            self._settle(fetch, receiver, head)
        else:
            self._scope.spawn(self._hash_and_settle(fetch, receiver, head))

    async def _hash_and_settle(self, fetch: Fetch, receiver: Receiver, head: Head) -> None:
        try:
            await self._loop.run_in_executor(None, receiver.hash_file)
        except (OSError, StorageError) as error:
            receiver.close()
            self.fetch_failed(fetch, error if isinstance(error, StorageError) else StorageError(str(error)))
            return
        self._settle(fetch, receiver, head)

    def _settle(self, fetch: Fetch, receiver: Receiver, head: Head) -> None:
        """The bytes are here and hashed: do they prove the chunk?"""
        ask = fetch.ask
        if not self._forget_fetch(fetch):
            receiver.close()
            return
        self._decide.received(ask, self._loop.time() - fetch.began)
        try:
            text = head.headers.get("p2pdist-attestation")
            if text is None:
                raise PeerError(f"chunk {ask.index} of {ask.blob} came without an attestation", peer=ask.peer.hex())
            if fetch.exchange.prove(receiver, from_header(text), ask.peer):
                self.stats.chunks_in += 1
            else:
                self.stats.bytes_redundant += fetch.exchange.length(ask.index)
        except SignerRefused as error:
            _log.info("a chunk is taken from elsewhere", peer=ask.peer.hex()[:12], error=str(error))
            self._decide.useless(ask)
        except (PeerError, ProtocolError) as error:
            self._refused(fetch, error)
        except StorageError as error:
            fetch.exchange.broken(error)
        self._pump()

    def _refused(self, fetch: Fetch, error: Exception) -> None:
        self.stats.refused += 1
        _log.warning("a peer's chunk is refused", peer=fetch.ask.peer.hex()[:12], error=str(error))
        self.ban(fetch.ask.peer, _BAN)
        self._host.peer_lied(fetch.ask.peer, fetch.exchange, fetch.ask.index, str(error))

    def fetch_busy(self, fetch: Fetch, load: int) -> None:
        """503."""
        if self._put_off(fetch):
            self.stats.busy += 1
            self._decide.busy(fetch.ask, load, self._loop.time())
            self._go_on()

    def fetch_absent(self, fetch: Fetch, load: int) -> None:
        """404."""
        if self._put_off(fetch):
            self._decide.absent(fetch.ask, load, self._loop.time())
            self._go_on()

    def _put_off(self, fetch: Fetch) -> bool:
        if not self._forget_fetch(fetch):
            return False
        if fetch.connection is not None:
            self._idle.setdefault(fetch.ask.peer, []).append(fetch.connection)
        return True

    def _go_on(self) -> None:
        """A source fell away: perhaps somebody waits here for what does not come, and others can be asked."""
        self._take(self._decide.turn())
        self._pump()

    def fetch_failed(self, fetch: Fetch, why: Exception) -> None:
        """It came to nothing."""
        if not self._forget_fetch(fetch):
            return
        self._decide.failed(fetch.ask, self._loop.time(), hold=self._knobs.stall)
        _log.debug("a request failed", peer=fetch.ask.peer.hex()[:12], chunk=fetch.ask.index, error=str(why))
        if isinstance(why, StorageError):
            fetch.exchange.broken(why)
        elif isinstance(why, (PeerError, ProtocolError, ValueError)) and fetch.receiver is not None:
            self._refused(fetch, why)
        if fetch.connection is not None and fetch.connection.usable and fetch.ask.peer in self._near.links:
            self._idle.setdefault(fetch.ask.peer, []).append(fetch.connection)
        self._go_on()

    def _proved(self, exchange: Exchange, index: int) -> None:
        peers, asks = self._decide.proved(exchange.name, index)
        self._cancel(asks)
        self._say_have(exchange, index, peers)
        self._take(self._decide.turn())
        self._pump()

    # --- serving -------------------------------------------------------------------------------------------------

    def connected(self, connection: Inbound) -> bool:
        """A connection came; False refuses it."""
        node = self._identify(connection.tls) or b"" if self._identify is not None and connection.tls else b""
        mine = sum(other == node for other in self._inbound.values()) if node else 0
        if len(self._inbound) >= self.settings.max_connections or mine >= self.settings.max_per_node:
            self.stats.refused_connections += 1
            return False
        self._inbound[connection] = node
        if node:
            connection.end_after(self._near.lifetimes.seen(node, connection.tls) - time.time())
        return True

    def bad_request(self) -> None:
        """Something came that is no request, or too large."""
        self.stats.bad_requests += 1

    def too_slow(self) -> None:
        """A connection was closed on which nothing happened."""
        self.stats.slow_connections += 1

    def disconnected(self, connection: Inbound) -> None:
        """It is closed."""
        self._inbound.pop(connection, None)
        if self._queued.pop(connection, None) is not None:
            self._decide.withdrawn(connection)

    def chunk_request(self, connection: Inbound, head: Head, digest: str, span: tuple[int, int]) -> None:
        """A request for a range; answered now or later."""
        node = self._near.node_of(connection.tls, head)
        if not node or self._near.is_banned(node, self._loop.time()):
            connection.answer(403, "Forbidden", close=True)
            return
        if self._inbound.get(connection) != node:
            self._inbound[connection] = node
            if sum(other == node for other in self._inbound.values()) > self.settings.max_per_node:
                self.stats.refused_connections += 1
                connection.answer(503, "Service Unavailable", close=True)
                return
        exchange = self._exchanges.get(digest)
        if exchange is None or head.number("p2pdist-chunk") not in (0, exchange.chunk_size):
            connection.answer(404, "Not Found")
            return
        start, end = span
        index = start // exchange.chunk_size
        first, last = chunk_range(index, exchange.size, exchange.chunk_size)
        if start >= exchange.size or not first <= start < end <= last:
            connection.answer(416, "Range Not Satisfiable")
            return
        self._queued[connection] = (exchange, index, start, end)
        chunks, active = head.number("p2pdist-chunks"), head.number("p2pdist-active")
        self._take(self._decide.request(connection, node, digest, index, chunks, active))

    def _take(self, turn: Turn[bytes]) -> None:
        for waiter in turn.serve:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            exchange, index, start, end = self._queued.pop(connection)
            connection.serve(exchange, start, end, self._decide.load, exchange.attestation(index))
        for waiter in turn.refuse:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            self._queued.pop(connection, None)
            connection.refuse(self._decide.load)
        for waiter in turn.absent:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            self._queued.pop(connection, None)
            connection.answer(404, "Not Found", f"P2pdist-Load: {self._decide.load}\r\n")

    def served(self, connection: Inbound, sent: int, whole: bool) -> None:
        """An answer has ended."""
        self.stats.bytes_out += sent
        self._take(self._decide.uploaded())

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = self._loop.call_later(self._knobs.tick, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = self._loop.time()
        for ask in self._decide.stalled(now):
            self._stalled(ask, now)
        for ask in self._decide.quiet(now):
            fetch = self._fetches.get((ask.peer, ask.blob, ask.index))
            if fetch is not None and fetch.connection is not None and fetch.receiver is not None:
                fetch.connection.look()
        self._pump()
        self._send(self._decide.late(now))
        unfinished = any(exchange.have != exchange.full for exchange in self._exchanges.values())
        if unfinished:
            self._look_for_more(now)
        else:
            self._pace = (now, self.stats.bytes_in)
        self._near.look_after(now)
        if self._near.links or unfinished or self._fetches:
            pause = self._knobs.tick if unfinished or self._fetches else self._knobs.alive
            self._ticking = self._loop.call_later(pause, self._tick)

    def _stalled(self, ask: Ask[bytes], now: float) -> None:
        fetch = self._fetches.get((ask.peer, ask.blob, ask.index))
        if fetch is None:
            return
        self._abandon(fetch, self._knobs.stall)
        link = self._near.links.get(ask.peer)
        if link is not None:
            self._near.drop_dead(link, f"a transfer brought nothing for {self._knobs.stall} s")

    def _promised_in_vain(self, now: float) -> dict[str, list[int]]:
        """Chunks that neighbours say they have while nothing worth the name comes: for the tracker, once a second.

        Whoever claims all chunks and sends none, or a byte now and then, must not keep the others from upstream.
        """
        if self.stats.bytes_in - self._pace[1] >= _WORTH or self._reading:
            self._pace = (now, self.stats.bytes_in)
        if now - self._pace[0] < _IN_VAIN or now - self._complained < 1.0:
            return {}
        self._complained = now
        lacking = {blob: list(bits(e.full & ~e.have, 64)) for blob, e in self._exchanges.items() if e.have != e.full}
        _log.warning("neighbours promise chunks and send none", blobs=len(lacking))
        return lacking

    def _look_for_more(self, now: float) -> None:
        if len(self._near.links) < self._knobs.few and now - self._asked_more > 1.0:
            self._asked_more = now
            self._host.neighbours_wanted(self._knobs.degree // 2)
        for blob, indexes in (self._decide.missing(now) or self._promised_in_vain(now)).items():
            self._host.chunks_missing(self._exchanges[blob], indexes)
        if self._orphaned is not None:
            since, nodes = self._orphaned
            own = self._decide.self_lease(now, since, nodes)
            if own is not None:
                blob, index = own
                exchange = self._exchanges[blob]
                for link in self._near.links.values():
                    link.send(Claim(self._numbers[blob], index))
                giver = self._giver(exchange, index)
                if giver is None:
                    self._host.read_alone(exchange, index)
                elif self.leased(exchange, index):
                    self._scope.spawn(self._carry_alone(exchange, index, giver))

    # --- other zones ---------------------------------------------------------------------------------------------

    async def carry(self, exchange: Exchange, index: int, source: PeerInfo, half: Callable[[], None]) -> None:
        """Bring a leased chunk from a node of another zone, proved; `half` is called when half of it is here.

        Raises:
            PeerError: it doesn't give it.
            StorageError: the chunk can't be written.
        """
        await self._carrier.fetch(exchange, index, source, half)

    def _other_zones(self) -> list[ControlLink]:
        return [link for node, link in self._near.links.items() if self._near.foreign(node)]

    def _giver(self, exchange: Exchange, index: int) -> PeerInfo | None:
        """Who of another zone has the chunk, as far as the links to other zones say."""
        for link in self._other_zones():
            for theirs in link.blobs.values():
                alike = (theirs.digest, theirs.chunk_size) == (exchange.name, exchange.chunk_size)
                if alike and theirs.have >> index & 1:
                    return self._near.addresses[link.peer.node]
        return None

    async def _carry_alone(self, exchange: Exchange, index: int, source: PeerInfo) -> None:
        """No tracker is there and this node's turn has come: from another zone, or else from upstream."""
        try:
            await self._carrier.fetch(exchange, index, source, partial(self.coming, exchange, index))
        except PeerError as error:
            _log.info("a chunk does not come from another zone", chunk=index, error=str(error))
            self._host.read_alone(exchange, index)
        except StorageError as error:
            exchange.broken(error)
        finally:
            self.unleased(exchange, index)

    def _count_in(self, count: int) -> None:
        self.stats.bytes_in += count
