"""Chunks from another zone, under leases: fetched from the node that the lease names, reported like upstream reads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from p2pdist.errors import PeerError, StorageError
from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.reader import UpstreamReader
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Transfer, Transfers

_log = structlog.get_logger("p2pdist.swarm")

# brings one chunk, proved, from one node; calls the last argument when half of it is here; PeerError, StorageError
Carry = Callable[[Exchange, int, PeerInfo, Callable[[], None]], Coroutine[Any, Any, None]]


class Crossing:
    """`carry` is the engine's."""

    def __init__(
        self, carry: Carry, engine: Engine, tracker: Tracker, transfers: Transfers, reader: UpstreamReader
    ) -> None:
        self._carry = carry
        self._engine = engine
        self._tracker = tracker
        self._transfers = transfers
        self._reader = reader

    async def lease(self, transfer: Transfer, exchange: Exchange, first: int, end: int, source: PeerInfo) -> None:
        """Fetch what is missing of [first, end), reporting each chunk; counted in `transfer.reads` by the caller."""
        index = first
        transfer.reading.update(range(first, end))
        try:
            for index in range(first, end):
                if not exchange.have >> index & 1:
                    await self._carry(exchange, index, source, partial(self._reader.half, exchange, index))
                    self._reader.report(exchange, index)
        except PeerError as error:
            self._tracker.send(wire.Failed(exchange.name, index, 0, False, 0.0, str(error)[:512]))
            _log.info("a chunk does not come from another zone", digest=exchange.name, chunk=index, error=str(error))
        except StorageError as error:
            await self._transfers.end(transfer, error)
        finally:
            transfer.reads -= 1
            transfer.reading.difference_update(range(first, end))
            for leased in range(first, end):
                self._engine.unleased(exchange, leased)
