"""Chunks on their way in: requests to neighbours, the connections they go over, and what comes of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from p2pdist.errors import PeerError, ProtocolError, SignerRefused, StorageError
from p2pdist.mesh.decide import Ask, Decisions
from p2pdist.mesh.fetching import Fetch, Outbound, prove_answer
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.neighbours import DIAL, Neighbours
from p2pdist.mesh.network import Network
from p2pdist.mesh.wire import Head
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.engine import EngineStats
from p2pdist.swarm.exchange import Exchange

_log = structlog.get_logger("p2pdist.mesh")


class DownloadOwner(Protocol):
    """Who is told what comes."""

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a chunk is here."""

    def refused(self, fetch: Fetch, error: Exception) -> None:
        """A peer sent what is not attested."""

    def fell_away(self) -> None:
        """A source fell away: perhaps somebody waits here for what does not come, and others can be asked."""


class Downloads:
    """The requests of one node. Implements `fetching.FetchOwner`."""

    def __init__(
        self,
        owner: DownloadOwner,
        node: bytes,
        network: Network,
        near: Neighbours,
        decide: Decisions[bytes],
        exchanges: dict[str, Exchange],
        stats: EngineStats,
        knobs: Knobs,
        identify: Callable[[object], bytes | None] | None,
    ) -> None:
        self._owner = owner
        self._node = node
        self._network = network
        self._near = near
        self._decide = decide
        self._exchanges = exchanges
        self._stats = stats
        self._knobs = knobs
        self._identify = identify
        self._fetches: dict[tuple[bytes, str, int], Fetch] = {}
        self._idle: dict[bytes, list[Outbound]] = {}
        self._pumping = False

    def start(self, scope: Scope) -> None:
        """Ready to ask; `scope` owns what takes time."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Let go of every idle connection."""
        for node in list(self._idle):
            self.forget(node)

    def forget(self, node: bytes) -> None:
        """A neighbour is gone: let go of the idle connections to it."""
        for outbound in self._idle.pop(node, []):
            outbound.close()

    @property
    def any(self) -> bool:
        """Whether a request is out."""
        return bool(self._fetches)

    def pump(self) -> None:
        self._pumping = False
        self.send(self._decide.pump(self._loop.time()))

    def pump_soon(self) -> None:
        """Once for all that comes in this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self.pump)

    def send(self, asks: list[Ask[bytes]]) -> None:
        for ask in asks:
            fetch = Fetch(ask, self._exchanges[ask.blob])
            self._fetches[ask.peer, ask.blob, ask.index] = fetch
            self._stats.requests_out = len(self._fetches)
            idle = self._idle.get(ask.peer)
            while idle:
                outbound = idle.pop()
                if outbound.usable and outbound.ends <= time.time():
                    outbound.close()
                elif outbound.usable:
                    outbound.request(fetch, self.request_head())
                    break
            else:
                self._scope.spawn(self._connect(fetch))

    def request_head(self) -> str:
        return (
            f"P2pdist-Node: {self._node.hex()}\r\nP2pdist-Chunks: {self._decide.chunks}\r\n"
            f"P2pdist-Active: {self._decide.downloads}\r\n"
        )

    async def _connect(self, fetch: Fetch) -> None:
        outbound = Outbound(self)
        try:
            await self.reach(outbound, self._near.addresses[fetch.ask.peer])
        except (OSError, TimeoutError, PeerError) as error:
            outbound.close()
            self.fetch_failed(fetch, error)
            return
        if self._fetches.get((fetch.ask.peer, fetch.ask.blob, fetch.ask.index)) is fetch and outbound.usable:
            outbound.request(fetch, self.request_head())
        else:
            outbound.close()

    async def reach(self, outbound: Outbound, peer: PeerInfo) -> None:
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
        self._stats.requests_out = len(self._fetches)
        if fetch.receiver is not None:
            self._decide.downloads -= 1
        return True

    def cancel(self, asks: list[Ask[bytes]]) -> None:
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
        self._stats.bytes_in += got
        ask, receiver = fetch.ask, fetch.receiver
        self._decide.progress(ask.peer, ask.blob, ask.index, self._loop.time())
        if receiver is not None and not fetch.half and 2 * receiver.remaining <= fetch.exchange.length(ask.index):
            fetch.half = True
            self._owner.coming(fetch.exchange, ask.index)

    def fetch_done(self, fetch: Fetch, head: Head) -> None:
        """All bytes of the chunk are in its receiver."""
        ask, outbound = fetch.ask, fetch.connection
        if not self._forget_fetch(fetch):
            return
        if outbound is not None and ask.peer in self._near.links:
            self._idle.setdefault(ask.peer, []).append(outbound)
        elif outbound is not None:
            outbound.close()
        self._decide.received(ask, self._loop.time() - fetch.began)
        try:
            if prove_answer(fetch, head):
                self._stats.chunks_in += 1
            else:
                self._stats.bytes_redundant += fetch.exchange.length(ask.index)
        except SignerRefused as error:
            _log.info("a chunk is taken from elsewhere", peer=ask.peer.hex()[:12], error=str(error))
            self._decide.useless(ask)
        except (PeerError, ProtocolError) as error:
            self._owner.refused(fetch, error)
        except StorageError as error:
            fetch.exchange.broken(error)
        self.pump()

    def fetch_busy(self, fetch: Fetch, load: int) -> None:
        """503."""
        if self._put_off(fetch):
            self._stats.busy += 1
            self._decide.busy(fetch.ask, load, self._loop.time())
            self._owner.fell_away()

    def fetch_absent(self, fetch: Fetch, load: int) -> None:
        """404."""
        if self._put_off(fetch):
            self._decide.absent(fetch.ask, load, self._loop.time())
            self._owner.fell_away()

    def _put_off(self, fetch: Fetch) -> bool:
        if not self._forget_fetch(fetch):
            return False
        if fetch.connection is not None:
            self._idle.setdefault(fetch.ask.peer, []).append(fetch.connection)
        return True

    def fetch_failed(self, fetch: Fetch, why: Exception) -> None:
        """It came to nothing."""
        if not self._forget_fetch(fetch):
            return
        self._decide.failed(fetch.ask, self._loop.time(), hold=self._knobs.stall)
        _log.debug("a request failed", peer=fetch.ask.peer.hex()[:12], chunk=fetch.ask.index, error=str(why))
        if isinstance(why, StorageError):
            fetch.exchange.broken(why)
        elif isinstance(why, (PeerError, ProtocolError, ValueError)) and fetch.receiver is not None:
            self._owner.refused(fetch, why)
        if fetch.connection is not None and fetch.connection.usable and fetch.ask.peer in self._near.links:
            self._idle.setdefault(fetch.ask.peer, []).append(fetch.connection)
        self._owner.fell_away()

    # --- time ----------------------------------------------------------------------------------------------------

    def look(self, asks: list[Ask[bytes]]) -> None:
        """Take what there is of answers of which nothing was heard for a while."""
        for ask in asks:
            fetch = self._fetches.get((ask.peer, ask.blob, ask.index))
            if fetch is not None and fetch.connection is not None and fetch.receiver is not None:
                fetch.connection.look()

    def stalled(self, ask: Ask[bytes]) -> bool:
        """Give up a request that brought nothing for too long; False: it is over already."""
        fetch = self._fetches.get((ask.peer, ask.blob, ask.index))
        if fetch is None:
            return False
        self._abandon(fetch, self._knobs.stall)
        return True
