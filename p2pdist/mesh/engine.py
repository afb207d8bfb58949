"""The mesh engine: carries out what `decide` decides, over control links and data connections.

All state changes happen in one synchronous step per event; tasks exist only for dialling. A transfer that brings no
byte for too long, a link that is silent, and a peer that sends what is not attested are dropped and reported.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from p2pdist.errors import PeerError, ProtocolError, StorageError
from p2pdist.mesh.carrying import Carrier
from p2pdist.mesh.control import ControlLink, OpenBlob
from p2pdist.mesh.decide import Decisions, bits
from p2pdist.mesh.downloads import Downloads
from p2pdist.mesh.fetching import Fetch
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.neighbours import MeshSettings, Neighbours
from p2pdist.mesh.network import Listener, Network
from p2pdist.mesh.serving import Inbound
from p2pdist.mesh.uploads import Uploads
from p2pdist.mesh.wire import AnyFrame, Claim, Close, Have, Open, bitmap, encode, mask
from p2pdist.protocol.chunks import valid_chunk_size
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.engine import EngineStats, Host
from p2pdist.swarm.exchange import Exchange

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
        self._network = network
        self._knobs = knobs or Knobs()
        self._near = Neighbours(self, node, network, settings, self._knobs, identify)
        self._decide: Decisions[bytes] = Decisions(rng, self._knobs, node)
        self._exchanges: dict[str, Exchange] = {}
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._uploads = Uploads(self._near, self._decide, self._exchanges, self.stats, settings, identify)
        self._downloads = Downloads(
            self, node, network, self._near, self._decide, self._exchanges, self.stats, self._knobs, identify
        )
        self._ticking: asyncio.TimerHandle | None = None
        self._orphaned: tuple[float, int] | None = None
        self._asked_more = 0.0
        self._reading: set[tuple[str, int]] = set()  # chunks on their way from upstream
        self._pace = (0.0, 0)  # when that many bytes had come
        self._complained = 0.0
        self._carrier = Carrier(
            self._downloads.reach,
            lambda peer: self._near.dial([peer]),
            self._downloads.request_head,
            self._count_in,
            self.refused,
            lambda node: self._near.is_banned(node, self._loop.time()),
            self._knobs.stall,
        )

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns."""
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        await self._scope.start()
        self._downloads.start(self._scope)
        self._uploads.start()
        self._listener: Listener = await self._network.listen(
            lambda: Inbound(self._uploads, self._knobs), self.settings.host, self.settings.port
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
        self._uploads.close()
        self._downloads.close()
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
        self._downloads.pump()

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""
        if self._exchanges.get(exchange.name) is not exchange:
            return
        del self._exchanges[exchange.name]
        number = self._numbers.pop(exchange.name)
        exchange.listeners.remove(self._proved)
        self._reading = {(blob, index) for blob, index in self._reading if blob != exchange.name}
        self._downloads.cancel(self._decide.remove_blob(exchange.name))
        self._uploads.withdraw(exchange)
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
        self._uploads.take(self._decide.turn())
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
            for blob, index in self._reading:  # under leases of which nobody else knows
                self._say_claim(blob, index)
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
        self._uploads.ban(peer)

    def link_up(self, link: ControlLink) -> None:
        """A link is open."""
        if not self._near.foreign(link.peer.node):
            self._decide.link_up(link.peer.node)
        for exchange in self._exchanges.values():
            self._open_on(link, exchange)
        self._tick_soon()

    def link_down(self, node: bytes) -> None:
        """It is closed."""
        self._downloads.cancel(self._decide.link_down(node))
        self._downloads.forget(node)
        self.fell_away()
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
            if theirs is not None and self._decide.claimed(theirs.digest, frame.index, self._loop.time()):
                self._say_claim(theirs.digest, frame.index, heard_from=link)

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
            self._downloads.pump_soon()

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
        self._downloads.pump()

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

    def _say_claim(self, blob: str, index: int, heard_from: ControlLink | None = None) -> None:
        """To all neighbours: a claim that only the claimer's know lets the others read the same (docs/adr/0014)."""
        data = encode(Claim(self._numbers[blob], index))
        for link in self._near.links.values():
            if link is not heard_from:
                link.send_encoded(data)

    # --- what becomes of chunks ----------------------------------------------------------------------------------

    def refused(self, fetch: Fetch, error: Exception) -> None:
        """A peer sent what is not attested: it is left alone for a while, and reported."""
        self.stats.refused += 1
        _log.warning("a peer's chunk is refused", peer=fetch.ask.peer.hex()[:12], error=str(error))
        self.ban(fetch.ask.peer, _BAN)
        self._host.peer_lied(fetch.ask.peer, fetch.exchange, fetch.ask.index, str(error))

    def fell_away(self) -> None:
        """A source fell away: perhaps somebody waits here for what does not come, and others can be asked."""
        self._uploads.take(self._decide.turn())
        self._downloads.pump()

    def _proved(self, exchange: Exchange, index: int) -> None:
        peers, asks = self._decide.proved(exchange.name, index)
        self._downloads.cancel(asks)
        self._say_have(exchange, index, peers)
        self._uploads.take(self._decide.turn())
        self._downloads.pump()

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = self._loop.call_later(self._knobs.tick, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        now = self._loop.time()
        for ask in self._decide.stalled(now):
            link = self._near.links.get(ask.peer)
            if self._downloads.stalled(ask) and link is not None:
                self._near.drop_dead(link, f"a transfer brought nothing for {self._knobs.stall} s")
        self._downloads.look(self._decide.quiet(now))
        self._downloads.pump()
        self._downloads.send(self._decide.late(now))
        unfinished = any(exchange.have != exchange.full for exchange in self._exchanges.values())
        if unfinished:
            self._look_for_more(now)
        else:
            self._pace = (now, self.stats.bytes_in)
        self._near.look_after(now)
        if self._near.links or unfinished or self._downloads.any:
            pause = self._knobs.tick if unfinished or self._downloads.any else self._knobs.alive
            self._ticking = self._loop.call_later(pause, self._tick)

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
        if lacking:
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
            own = self._decide.self_lease(now, since, nodes, self._away())  # one a tick: in step, all pause at once
            if own is not None:
                blob, index = own
                exchange = self._exchanges[blob]
                self._say_claim(blob, index)
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
        self.stats.chunks_in += 1

    def _other_zones(self) -> list[ControlLink]:
        links = self._near.links.items() if self.settings.zone else ()
        return [link for node, link in links if self._near.foreign(node)]

    def _away(self) -> dict[bytes, dict[str, int]]:
        """What nodes of other zones have, by node and blob."""
        return {
            link.peer.node: {blob.digest: blob.have for blob in link.blobs.values()} for link in self._other_zones()
        }

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
