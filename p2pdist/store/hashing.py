"""Hashing of files in bounded memory. Blocking: for worker threads, except a chunk at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store.faults import storage_errors

if TYPE_CHECKING:
    from hashlib import _Hash

BUFFER = 256 * 1024  # bytes read at a time: the interpreter's lock is asked for rarely, and it stays in the cache
WAKE = 4 * 1024 * 1024  # bytes that wait before a worker is woken; what `finish` has left to hash, in the best case
SPAN = 16 * 1024 * 1024  # bytes between two looks at whether a frontier was rewound or stopped
PIECE = 1024 * 1024  # bytes between two pauses of somebody who isn't in a hurry
FLUSH = 32 * 1024 * 1024  # bytes hashed between two syncs


def feed(hasher: _Hash, fd: int, start: int, end: int) -> int:
    """Puts the file's bytes `[start, end)` into `hasher`; how many there were (fewer: the file is shorter)."""
    buffer = memoryview(bytearray(min(BUFFER, max(end - start, 1))))
    position = start
    while position < end:
        count = os.preadv(fd, [buffer[: min(len(buffer), end - position)]], position)
        if count == 0:
            break
        hasher.update(buffer[:count])
        position += count
    return position - start


def hash_file(fd: int, digest: Digest) -> str:
    """The hex digest of all of the open file, by the algorithm of `digest`."""
    hasher = digest.hasher()
    feed(hasher, fd, 0, os.fstat(fd).st_size)
    return hasher.hexdigest()


def hash_slowly(fd: int, digest: Digest, pause: Callable[[int], None]) -> str:
    """As `hash_file`, what the disk has now: not what memory holds of it. `pause` is called after each so many bytes.

    Nothing of what is read stays in memory, where it would take the place of what is in use.
    """
    hasher = digest.hasher()
    size = os.fstat(fd).st_size
    for start in range(0, size, PIECE):
        length = min(PIECE, size - start)
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)
        feed(hasher, fd, start, start + length)
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)
        pause(length)
    return hasher.hexdigest()


class Frontier:
    """Hashes the proved prefix of a growing file while it grows: the whole digest is ready soon after the last byte.

    It also syncs what it hashed from time to time. The disk must take every byte before the blob is stored, and early
    is better: the last sync is short, and writers are not stopped by the kernel for too many dirty pages.

    `extend` and `rewind` are called by whoever proves chunks and never block; the hashing is done by `run`, which is
    given to `submit` whenever enough proved bytes wait. Exact: once `rewind` gave up a byte that was hashed, or was
    being hashed at that moment, all of it is hashed again.
    """

    def __init__(self, fd: int, digest: Digest, submit: Callable[[Callable[[], None]], object]) -> None:
        self._fd = fd
        self._digest = digest
        self._submit = submit
        self._hasher = digest.hasher()
        self._state = threading.Lock()  # guards what follows; held for a few instructions
        self._end = 0  # proved bytes
        self._claimed = 0  # bytes that are in the hasher or on their way into it
        self._stale = False
        self._scheduled = False
        self._stopped = False
        self._failure: OSError | None = None
        self._unsynced = 0
        self.sync_failure: OSError | None = None
        self._working = threading.Lock()  # held by the one thread that hashes

    @property
    def hashed(self) -> int:
        """How many bytes are hashed, or being hashed; for tests and curiosity."""
        return 0 if self._stale else self._claimed

    def extend(self, end: int) -> None:
        """The first `end` bytes are proved now."""
        with self._state:
            self._end = end
            waiting = end - self.hashed
            wake = waiting >= WAKE and not self._scheduled and self._failure is None
            self._scheduled = self._scheduled or wake
        if wake:
            self._submit(self.run)

    def rewind(self, end: int) -> None:
        """Only the first `end` bytes are proved now."""
        with self._state:
            self._end = end
            if self._claimed > end:
                self._stale = True

    def run(self) -> None:
        """Hashes until it has caught up. For a worker thread."""
        with self._working:
            try:
                while (span := self._next()) is not None:
                    if feed(self._hasher, self._fd, *span) < span[1] - span[0]:
                        raise OSError(f"{self._digest}: the partial file was cut short by somebody else")
                    self._sync(span[1] - span[0])
            except OSError as failure:
                with self._state:
                    self._failure = failure  # `finish` raises it: here is nobody to tell
                    self._scheduled = False

    def finish(self) -> str:
        """Hashes what is left of the proved prefix; its hex digest. For a worker thread. StorageError."""
        with self._state:
            if self._failure is not None:  # what the hasher got of the last span is unknown
                self._failure, self._stale = None, True
        self.run()
        with self._working, self._state:
            if self._failure is not None:
                with storage_errors(f"hashing {self._digest}"):
                    raise self._failure
            if self._stale or self._claimed != self._end:
                raise StorageError(f"{self._digest}: changed while it was committed")
            return self._hasher.hexdigest()

    def stop(self) -> None:
        """Hashes no more; returns when nothing reads the file any longer. For a worker thread."""
        with self._state:
            self._stopped = True
        with self._working:
            return

    def _sync(self, hashed: int) -> None:
        self._unsynced += hashed
        if self._unsynced < FLUSH or self.sync_failure is not None:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as failure:
            # The kernel tells of an error once. Kept, for else the fsync of the commit would succeed without the bytes.
            self.sync_failure = failure
        self._unsynced = 0

    def _next(self) -> tuple[int, int] | None:
        with self._state:
            if self._stale:
                self._hasher, self._claimed, self._stale = self._digest.hasher(), 0, False
            start = self._claimed
            if start >= self._end or self._stopped:
                self._scheduled = False
                return None
            self._claimed = min(self._end, start + SPAN)
            return start, self._claimed
