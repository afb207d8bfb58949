"""Stored blobs that are open for peers: kept from their own transfer, or opened when a neighbour asks; bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import structlog

from p2pdist.errors import InputError, OperationError
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import valid_chunk_size
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.tracker import Tracker

_log = structlog.get_logger("p2pdist.swarm")


class Seeds:
    """At most `limit` at once; the one that was opened first is closed first."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        scope: Scope,
        limit: int,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._scope = scope
        self._limit = limit
        self._clock = clock
        self._open: OrderedDict[str, Exchange] = OrderedDict()
        self._opening: set[str] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def keep(self, exchange: Exchange) -> None:
        """It stays open for peers after its own transfer, in place of an older one of the same blob."""
        old = self._open.pop(exchange.name, None)
        self._open[exchange.name] = exchange
        closing = [] if old is None or old is exchange else [old]
        while len(self._open) > self._limit:
            closing.append(self._open.popitem(last=False)[1])
        for one in closing:
            self._engine.remove(one)
            await one.close()

    def wanted(self, digest: str, size: int, chunk_size: int) -> None:
        """A neighbour wants a blob that no exchange is open for: open one if it is stored here, cut the same way."""
        if digest in self._opening:
            return
        try:
            parsed = Digest.parse(digest)
        except InputError:
            return
        stored = self._store.find(parsed)
        if stored is None:
            self._tracker.send(wire.Drops([digest]))  # evicted since the tracker was told of it
        elif stored.size == size and valid_chunk_size(size, chunk_size):
            self._opening.add(digest)
            self._scope.spawn(self._seed(parsed, chunk_size))

    async def _seed(self, digest: Digest, chunk_size: int) -> None:
        try:
            blob = await self._store.open_blob(digest)
            if blob is None:
                self._tracker.send(wire.Drops([str(digest)]))
                return
            exchange = Exchange(digest, blob.size, chunk_size, self._attestor, self._clock, blob=blob)
            self._engine.add(exchange)
            await self.keep(exchange)
        except OperationError as error:
            _log.warning("a stored blob can't be served to peers", digest=str(digest), error=str(error))
        finally:
            self._opening.discard(str(digest))

    async def forget(self, digest: str) -> None:
        """This one is open no longer."""
        exchange = self._open.pop(digest, None)
        if exchange is not None:
            self._engine.remove(exchange)
            await exchange.close()

    async def release(self) -> bool:
        """Let go of all, so that the store may evict them; a neighbour that asks gets what is left. False: of none."""
        released = bool(self._open)
        self.withdraw()
        await self.close()
        return released

    def withdraw(self) -> None:
        """Out of the engine; peers are served no longer."""
        for exchange in self._open.values():
            self._engine.remove(exchange)

    async def close(self) -> None:
        """Let go of every file."""
        while self._open:
            await self._open.popitem()[1].close()
