"""One client's share in the one flight of a blob; see `mirror.source.BlobHandle`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol

from p2pdist.errors import DigestMismatch, StorageError
from p2pdist.oci import Digest, Repository
from p2pdist.protocol.chunks import chunk_range
from p2pdist.protocol.limits import SMALL_CONTENT
from p2pdist.store import BlobFile, Store
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.transfers import Transfer

_PIECE = 256 * 1024
_ALIVE = 5.0  # seconds without a byte after which a stream says that its source is alive
_PATIENCE = 240.0  # seconds that a stream waits for its own next chunk while its rollout moves (CRI gives up at 300)


class Flying(Protocol):
    """What a handle asks of its pull."""

    @property
    def store(self) -> Store:
        """Where finished blobs are."""

    def transfer(self, repository: Repository, digest: Digest, size: int) -> Transfer:
        """The running or new transfer of a large blob that is not stored."""

    async def small(self, repository: Repository, digest: Digest, size: int) -> None:
        """Bring a small blob into the store."""


class Handle:
    """`size` in bytes."""

    def __init__(self, pull: Flying, repository: Repository, digest: Digest, size: int) -> None:
        self.size: int | None = size
        self._pull = pull
        self._repository = repository
        self._digest = digest
        self._bytes = size
        self._transfer: Transfer | None = None

    def begin(self) -> None:
        """Join or start the flight, unless the blob is here or so small that it comes with one answer."""
        if self._transfer is None and self._bytes > SMALL_CONTENT and self._pull.store.find(self._digest) is None:
            self._transfer = self._pull.transfer(self._repository, self._digest, self._bytes)
            self._transfer.clients += 1

    @property
    def delivering(self) -> bool:
        """Some source has delivered bytes of it, or of what its rollout delivers before it."""
        return self._transfer is not None and self._transfer.delivering

    async def proved(self) -> BlobFile:
        """Wait until the whole digest is proved and stored."""
        for _ in range(2):  # a stored file that turns out damaged is dropped and fetched again
            if self._pull.store.find(self._digest) is None:
                await self._fetch()
            blob = await self._pull.store.open_blob(self._digest)
            if blob is not None:
                return blob
            self._leave()
        raise StorageError(f"{self._digest} was stored and can't be read")

    async def _fetch(self) -> None:
        if self._bytes <= SMALL_CONTENT:
            await self._pull.small(self._repository, self._digest, self._bytes)
            return
        self.begin()
        if self._transfer is not None:
            await asyncio.shield(self._transfer.done)

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        """Attested chunks in order, the blob's last one only after the whole digest is proved.

        An empty piece says that the source is alive although this blob's next chunk is not here yet. What was begun
        before the whole digest failed never goes on: its first bytes may be the wrong ones.
        """
        transfer = self._transfer
        if transfer is None:
            raise StorageError(f"{self._digest} is not on its way")
        await transfer.ready.wait()
        exchange = transfer.exchange
        if exchange is None:
            await asyncio.shield(transfer.done)
            raise StorageError(f"{self._digest} came without an exchange")
        loop = asyncio.get_running_loop()
        doubts = exchange.doubts
        moved = said = loop.time()  # of the last bytes; of the last piece, empty ones too
        while start < end:
            if exchange.doubted is not None or exchange.doubts != doubts:
                raise exchange.doubted or _tainted(exchange)
            if exchange.failure is not None:
                break
            index = start // exchange.chunk_size
            proved = exchange.have >> index & 1 and (index < exchange.count - 1 or exchange.stored)
            if not proved:
                if not await _changes(exchange, said + _ALIVE):
                    said = loop.time()
                    if said - transfer.rollout.last_progress < 2 * _ALIVE and said - moved < _PATIENCE:
                        yield b""
                continue
            moved = said = loop.time()
            stop = min(end, start + _PIECE, chunk_range(index, exchange.size, exchange.chunk_size)[1])
            data = exchange.read(start, stop - start)
            if not data:
                raise StorageError(f"{self._digest} ends at byte {start}")
            yield data
            start += len(data)
        if start < end:
            async with aclosing(self._rest(transfer, exchange, start, end)) as rest:
                async for data in rest:
                    yield data

    async def _rest(self, transfer: Transfer, exchange: Exchange, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The exchange was closed under the stream: an error, or the blob is stored and open for peers no longer."""
        if not exchange.stored:
            raise exchange.failure or StorageError(f"{self._digest} is closed")
        await asyncio.shield(transfer.done)
        blob = await self._pull.store.open_blob(self._digest)
        if blob is None:
            raise StorageError(f"{self._digest} was evicted while it was sent")
        with blob:
            while start < end:
                data = blob.pread(start, min(_PIECE, end - start))
                if not data:
                    raise StorageError(f"{self._digest} ends at byte {start}")
                yield data
                start += len(data)

    def release(self) -> None:
        """The client left or has got everything."""
        self._leave()

    def _leave(self) -> None:
        if self._transfer is not None:
            self._transfer.clients -= 1
            self._transfer = None


def _tainted(exchange: Exchange) -> DigestMismatch:
    return DigestMismatch(exchange.name, "another one before its chunks were read again", exchange.size)


async def _changes(exchange: Exchange, deadline: float) -> bool:
    """Whether something changes before the loop's time is `deadline`."""
    try:
        async with asyncio.timeout_at(deadline):
            await exchange.changed()
    except TimeoutError:
        return False
    return True
