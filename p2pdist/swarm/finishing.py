"""The end of a transfer: every chunk is proved, then the whole digest, then the blob is stored and given to peers."""

from __future__ import annotations

import asyncio

import structlog

from p2pdist.errors import DigestMismatch, StorageError, UpstreamError
from p2pdist.protocol import messages as wire
from p2pdist.scope import Scope
from p2pdist.store import Store, StoredBlob
from p2pdist.swarm.doubt import Doubt
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.seeds import Seeds
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Transfer, Transfers

_log = structlog.get_logger("p2pdist.swarm")


class Finisher:
    """Follows the exchanges it is given to `watch` to their end."""

    def __init__(
        self, store: Store, tracker: Tracker, transfers: Transfers, seeds: Seeds, doubt: Doubt, scope: Scope
    ) -> None:
        self._store = store
        self._tracker = tracker
        self._transfers = transfers
        self._seeds = seeds
        self._doubt = doubt
        self._scope = scope

    def watch(self, exchange: Exchange) -> None:
        """It ends with a stored blob or an error, whoever brings its last chunk."""
        exchange.listeners.append(self._progressed)
        exchange.on_broken = self._broken

    def check(self, transfer: Transfer) -> None:
        """Finish it if every chunk is here."""
        if transfer.exchange is not None and transfer.exchange.whole and not transfer.finishing:
            transfer.finishing = True
            self._scope.spawn(self._finish(transfer, transfer.exchange))

    def _progressed(self, exchange: Exchange, index: int) -> None:
        transfer = self._transfers.of(exchange)
        if transfer is not None:
            transfer.rollout.last_progress = asyncio.get_running_loop().time()
            self.check(transfer)

    def _broken(self, exchange: Exchange, error: StorageError) -> None:
        transfer = self._transfers.of(exchange)
        if transfer is not None:
            self._scope.spawn(self._transfers.end(transfer, error))

    async def _finish(self, transfer: Transfer, exchange: Exchange) -> None:
        whole = asyncio.get_running_loop().time()
        try:
            await self._prove(transfer, exchange)
        except (StorageError, UpstreamError) as error:  # DigestMismatch is a StorageError
            await self._transfers.end(transfer, error)
            return
        stored = self._store.find(exchange.digest)
        if stored is None:
            await self._transfers.end(transfer, StorageError(f"{exchange.name} was evicted as soon as it was stored"))
            return
        self._stored(transfer, exchange, stored, whole)
        await self._seeds.keep(exchange)

    async def _prove(self, transfer: Transfer, exchange: Exchange) -> None:
        try:
            await exchange.commit(self._store)
        except DigestMismatch as error:
            await self._doubt.settle(transfer, exchange, self._store, error)
        self._doubt.judge(exchange)

    def _stored(self, transfer: Transfer, exchange: Exchange, stored: StoredBlob, whole: float) -> None:
        _log.info(
            "blob stored",
            digest=exchange.name,
            size=exchange.size,
            seconds=round(whole - transfer.began, 3),
            proving_seconds=round(asyncio.get_running_loop().time() - whole, 3),
            from_upstream=transfer.from_upstream,
        )
        self._tracker.send(wire.Done(exchange.name))
        exchange.listeners.remove(self._progressed)
        self._transfers.settle(transfer)
        if not transfer.done.done():
            transfer.done.set_result(stored)
