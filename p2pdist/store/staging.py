"""A blob on its way in: chunks are written, proved one by one, and at the end the whole digest."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Protocol, Self, TypeVar

from p2pdist.errors import DigestMismatch, InputError, StorageError
from p2pdist.protocol.chunks import chunk_count, chunk_range
from p2pdist.store.blob import StoredBlob
from p2pdist.store.faults import storage_errors
from p2pdist.store.hashing import Frontier
from p2pdist.store.journal import Claim
from p2pdist.store.partial import OpenPartial, chunk_sha256

T = TypeVar("T")


class Home(Protocol):
    """What a staging asks of its store."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` in a worker thread."""
        ...

    def adopt(self, partial: OpenPartial) -> StoredBlob:
        """Gives the file, whose digest is proved, its final name. For a worker thread."""
        ...

    def release(self, partial: OpenPartial, keep: bool) -> None:
        """The files are closed. Deletes them unless they are kept. For a worker thread."""
        ...


class Staging:
    """One partial blob, open in one process. Always `close` it (or use `async with`), also after `commit`.

    What is proved is safe: `write` refuses to touch a proved chunk. The rest is the caller's business: while a chunk is
    written it must have one writer, or its hash must be taken from the file (`chunk_sha256`) before
    `prove`, for else the bytes that were hashed as they came needn't be those that are in the file.

    `have` is the bit mask of proved chunks (bit k: chunk k). What isn't a coroutine waits for nothing but the page
    cache. Sizes and offsets in bytes.
    """

    def __init__(self, partial: OpenPartial, home: Home) -> None:
        heading = partial.heading
        self.digest = heading.digest
        self.size = heading.size
        self.chunk_size = heading.chunk_size
        self.count = chunk_count(heading.size, heading.chunk_size)
        self.fd = partial.fd
        self.have = _mask(partial.claims, self.count)
        self._partial = partial
        self._claims = partial.claims
        self._home = home
        self._prefix = 0  # proved chunks before the first unproved one
        self._lock = threading.Lock()
        self._frontier = Frontier(partial.fd, heading.digest, home.submit)
        self._stored: StoredBlob | None = None
        self._committing: Future[StoredBlob] | None = None
        self._ending: Future[None] | None = None
        self._doubtful = False
        self._advance()

    @property
    def complete(self) -> bool:
        """Whether every chunk is proved."""
        return self._prefix == self.count

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes `data` at `offset`, all of it.

        Raises:
            InputError: it would reach outside the blob.
            StorageError: it would overwrite a proved chunk, or the staging is committed or closed.
            DiskFull: no room; what is proved is as it was, and the same write may be tried again.
        """
        rest = memoryview(data).cast("B")
        if offset < 0 or offset + len(rest) > self.size:
            raise InputError(f"{self.digest}: bytes {offset}-{offset + len(rest)} of a blob of {self.size}")
        self._must_be_changeable()
        if not rest:
            return
        first, last = offset // self.chunk_size, (offset + len(rest) - 1) // self.chunk_size
        if (self.have >> first) & ((1 << (last - first + 1)) - 1):
            raise StorageError(f"{self.digest}: write over a proved chunk in {first}-{last}; forget it first")
        with storage_errors("writing", self.digest):
            while rest:
                count = os.pwrite(self.fd, rest, offset)
                rest, offset = rest[count:], offset + count

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, proved or not (see `have`). StorageError: closed, or the disk fails."""
        self._must_be_open()
        with storage_errors("reading", self.digest):
            return os.pread(self.fd, max(0, min(length, self.size - offset)), offset)

    def chunk_sha256(self, index: int) -> bytes:
        """The sha256 (32 bytes) of chunk `index` as it is in the file now. Blocks for the hashing of one chunk."""
        self._must_be_open()
        self._must_exist(index)
        with storage_errors("reading", self.digest):
            return chunk_sha256(self.fd, self._partial.heading, index)

    def prove(self, index: int, sha256: bytes, evidence: bytes) -> None:
        """Chunk `index` is in the file, whole, and its sha256 (32 bytes) is vouched for by `evidence` (up to 4 KiB).

        It is remembered over crashes. Saying the same again does nothing.

        Raises:
            InputError: no such chunk, or not such a sha256 or evidence.
            StorageError: the chunk is proved with another sha256 (forget it first), or committed or closed.
            DiskFull: no room to remember it; the chunk isn't proved.
        """
        self._must_be_changeable()
        self._must_exist(index)
        with self._lock:
            known = self._claims.get(index)
            if known is not None:
                if known.sha256 != sha256:
                    raise StorageError(f"{self.digest}: chunk {index} is proved with another sha256; forget it first")
                return
            claim = Claim(index, bytes(sha256), bytes(evidence))
            with storage_errors("writing the journal of", self.digest):
                self._partial.journal.add(claim)
            self._claims[index] = claim
            self.have |= 1 << index
            if index == self._prefix:
                self._advance()

    def evidence(self, index: int) -> tuple[bytes, bytes] | None:
        """The sha256 and the evidence that chunk `index` was proved with; None if it isn't."""
        claim = self._claims.get(index)
        return None if claim is None else (claim.sha256, claim.evidence)

    def forget(self, index: int) -> None:
        """Chunk `index` is no longer proved, and may be written again. Nothing happens if it wasn't.

        Raises:
            InputError: no such chunk.
            StorageError: committed or closed, or the disk fails.
        """
        self._must_be_changeable()
        self._must_exist(index)
        with self._lock:
            if self._claims.pop(index, None) is None:
                return
            self.have &= ~(1 << index)
            if index < self._prefix:
                self._prefix = index
                self._frontier.rewind(index * self.chunk_size)
            with storage_errors("writing the journal of", self.digest):
                self._partial.journal.drop(index)

    async def commit(self) -> StoredBlob:
        """Proves the whole digest, makes the blob durable and gives it its final name.

        Once begun it goes on to its end, even if the caller is cancelled; asking again waits for the same. `read` works
        on until `close`.

        Raises:
            StorageError: chunks are missing, the staging is closed, or the disk fails.
            DigestMismatch: some chunk isn't what its evidence said. The staging stays usable: `forget` the suspects.
            DiskFull: no room to make it durable.
        """
        if self._stored is not None:
            return self._stored
        if self._committing is None or self._committing.done():
            self._must_be_changeable()
            if not self.complete:
                raise StorageError(
                    f"{self.digest}: {self.count - self.have.bit_count()} of {self.count} chunks are missing"
                )
            self._committing = self._home.submit(self._commit)
        return await asyncio.shield(asyncio.wrap_future(self._committing))

    async def close(self) -> None:
        """Ends the work on it; what is proved is kept for the next `stage`. A second call does nothing."""
        await self._end(keep=True)

    async def abandon(self) -> None:
        """Ends the work on it and deletes what there is, unless it is committed or closed already."""
        await self._end(keep=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0 and self._ending is None:
            warnings.warn(f"unclosed staging of {self.digest}", ResourceWarning, source=self, stacklevel=2)

    # --- on the caller's thread

    def _advance(self) -> None:
        """The prefix may have grown. With the lock held, or alone."""
        prefix = (~self.have & (self.have + 1)).bit_length() - 1  # the lowest bit that isn't set
        if prefix > self._prefix:
            self._prefix = prefix
            self._frontier.extend(chunk_range(prefix - 1, self.size, self.chunk_size)[1])

    def _must_exist(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise InputError(f"{self.digest}: chunk {index} of {self.count}")

    def _must_be_open(self) -> None:
        if self._ending is not None:
            raise StorageError(f"{self.digest}: the staging is closed")

    def _must_be_changeable(self) -> None:
        self._must_be_open()
        if self._stored is not None or (self._committing is not None and not self._committing.done()):
            raise StorageError(f"{self.digest}: the staging is being committed")
        if self._doubtful:
            raise StorageError(f"{self.digest}: the disk failed while it was committed; abandon it")

    async def _end(self, keep: bool) -> None:
        if self._ending is None:
            self._ending = self._home.submit(lambda: self._finish(keep))
        await asyncio.shield(asyncio.wrap_future(self._ending))

    # --- on a worker thread

    def _commit(self) -> StoredBlob:
        got = self._frontier.finish()
        if got != self.digest.hex:
            raise DigestMismatch(str(self.digest), f"{self.digest.algorithm}:{got}", self.size)
        with storage_errors(f"making {self.digest} durable"):
            try:
                if self._frontier.sync_failure is not None:
                    raise self._frontier.sync_failure
                os.fsync(self.fd)
            except OSError:
                # The kernel may have dropped the pages it couldn't write: what is read now needn't be on the disk.
                self._doubtful = True
                raise
        self._stored = self._home.adopt(self._partial)
        return self._stored

    def _finish(self, keep: bool) -> None:
        if self._committing is not None:  # it was given to the workers before this, so it is running
            wait([self._committing])
        self._frontier.stop()
        self.fd = -1
        self._partial.close()
        self._home.release(self._partial, keep and bool(self.have) and not self._doubtful)


def _mask(indices: Iterable[int], count: int) -> int:
    """The int whose bits `indices` are set; not by shifting, which would take quadratic time."""
    mask = bytearray(count // 8 + 1)
    for index in indices:
        mask[index // 8] |= 1 << index % 8
    return int.from_bytes(mask, "little")
