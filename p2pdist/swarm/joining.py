"""How a transfer comes to its swarm: the tracker is asked, a chunk size agreed on, the blob staged, the engine told.

A tracker that doesn't answer in time is done without: the chunk size then follows from the plan alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pdist.errors import DiskFull, StorageError
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_size_for, valid_chunk_size
from p2pdist.store import Staging, Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.finishing import Finisher
from p2pdist.swarm.seeds import Seeds
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Rollout, Transfer, Transfers

MAX_READING = 64  # leased chunks in one Want


class Joining:
    """`wait`: seconds after which a tracker that has not answered a Join is done without."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        transfers: Transfers,
        finisher: Finisher,
        seeds: Seeds,
        wait: float,
        clock: Callable[[], float],
    ) -> None:
        self.known: list[wire.PeerInfo] = []  # neighbours of an earlier run, for a start without a tracker
        self._store = store
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._transfers = transfers
        self._finisher = finisher
        self._seeds = seeds
        self._wait = wait
        self._clock = clock

    async def begin(self, rollout: Rollout, new: list[Transfer]) -> None:
        """Bring `new` transfers of the rollout to their swarms."""
        partial = {str(digest): chunk_size for digest, _, chunk_size in self._store.partials()}
        for transfer in new:
            chunk_size = partial.get(str(transfer.blob.digest))
            if chunk_size is not None:
                await self.open(transfer, chunk_size)
        self.join(rollout)
        if not self._tracker.connected and not self._engine.links():
            self._engine.link(self.known)
        await asyncio.sleep(0 if not self._tracker.connected else self._wait)
        for transfer in new:
            if transfer.exchange is None and not transfer.opening and not transfer.done.done():
                await self.open(transfer, chunk_size_for(rollout.plan.size, transfer.blob.size))

    def join(self, rollout: Rollout) -> None:
        """Tell the tracker what is wanted, and what is here of it already."""
        wants = [_want_of(transfer) for transfer in rollout.unfinished if not transfer.doubted]
        if wants:
            self._tracker.send(wire.Join(str(rollout.plan.rollout), rollout.plan.repository.registry, wants))

    async def joined(self, message: wire.Joined) -> None:
        """The tracker's answer."""
        for swarm in message.swarms:
            transfer = self._transfers.find(swarm.digest)
            if transfer is not None and valid_chunk_size(transfer.blob.size, swarm.chunk_size):
                transfer.rollout.joined = True
                await self.open(transfer, swarm.chunk_size)
        self._engine.link(message.peers)

    async def open(self, transfer: Transfer, chunk_size: int) -> None:
        """Stage the blob in chunks of `chunk_size` and take part in its swarm. Of overlapping calls the last counts."""
        transfer.cut = chunk_size
        if transfer.opening:
            return
        transfer.opening = True
        try:
            opened = 0
            while opened != transfer.cut:
                opened = transfer.cut
                await self._open(transfer, opened)
        finally:
            transfer.opening = False

    async def _open(self, transfer: Transfer, chunk_size: int) -> None:
        blob, old = transfer.blob, transfer.exchange
        if transfer.done.done() or (old is not None and old.chunk_size == chunk_size):
            return
        if old is not None:
            if old.have or transfer.doubted:
                return  # chunks are here already: the swarm of another cut is no use any more
            self._engine.remove(old)
            transfer.exchange = None
            await old.close()
        try:
            staging = await self._stage(transfer, chunk_size)
        except StorageError as error:
            await self._transfers.end(transfer, error)
            return
        if transfer.done.done():  # it ended while it was staged
            await staging.close()
            return
        exchange = Exchange(blob.digest, blob.size, chunk_size, self._attestor, self._clock, staging=staging)
        transfer.exchange = exchange
        self._finisher.watch(exchange)
        self._engine.add(exchange)
        transfer.ready.set()
        self._finisher.check(transfer)

    async def _stage(self, transfer: Transfer, chunk_size: int) -> Staging:
        """An open blob can't be evicted: where there is no room, those that are open for peers make some."""
        blob = transfer.blob
        try:
            return await self._store.stage(blob.digest, blob.size, chunk_size)
        except DiskFull:
            if not await self._seeds.release():
                raise
        return await self._store.stage(blob.digest, blob.size, chunk_size)


def _want_of(transfer: Transfer) -> wire.Want:
    exchange = transfer.exchange
    digest, size = str(transfer.blob.digest), transfer.blob.size
    if exchange is None:
        return wire.Want(digest, size)
    reading = sorted(index for index in transfer.reading if not exchange.have >> index & 1)[:MAX_READING]
    return wire.Want(digest, size, exchange.chunk_size, exchange.bitmap(), reading, transfer.alone)
