"""The blobs under their final names. A name and its index entry change together, under one lock.

Blocking, safe between threads. What only looks or renames may be called on the event loop; what hashes, syncs or
deletes is for worker threads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from p2pdist.errors import DigestMismatch
from p2pdist.oci import Digest
from p2pdist.store.blob import BlobFile, Stamp, StoredBlob
from p2pdist.store.eviction import Candidate
from p2pdist.store.faults import storage_errors
from p2pdist.store.index import Entry, Index
from p2pdist.store.layout import Layout, delete, sync_directory
from p2pdist.store.verify import OPEN_BLOB, prove_file

_log = structlog.get_logger(__name__)


class Shelf:
    """Puts files on, hands them out, takes them away."""

    def __init__(self, layout: Layout, index: Index, clock: Callable[[], float]) -> None:
        self._layout = layout
        self._index = index
        self._clock = clock
        self._names = threading.Lock()  # held for a rename and an index entry, never for a hash or a sync
        self._open: Counter[Digest] = Counter()
        self._opening = threading.Lock()  # guards the counts
        self._serial = itertools.count()
        self.damaged = 0  # blobs that were no longer what their digests say
        self.kept: frozenset[Digest] = frozenset()  # not to be evicted either, as long as it says so

    # --- handing out

    def open_unchanged(self, digest: Digest, max_age: float | None) -> BlobFile | None:
        """The open blob if its file is as it was when it was hashed, at most `max_age` seconds ago; None if not."""
        entry = self._index.get(digest)
        now = self._clock()
        if entry is None or not (max_age is None or 0 <= now - entry.verified <= max_age):
            return None
        with storage_errors(f"opening {digest}"):
            try:
                fd = os.open(self._layout.blob(digest), OPEN_BLOB)
            except FileNotFoundError:
                return None
            except OSError:
                if self._layout.blob(digest).is_symlink():
                    return None
                raise
            if Stamp.of(os.fstat(fd)) != entry.stamp:
                os.close(fd)
                return None
        with self._opening:
            self._open[digest] += 1
        self._index.touch(digest, now)
        return BlobFile(digest, entry.stamp.size, fd, lambda: self._closed(digest))

    def reverify(self, entry: Entry, pause: Callable[[int], None] | None = None) -> None:
        """Hashes the whole blob, unless there is another proof than `entry` already: a new proof, or the blob is gone.

        With `pause`: in no hurry, as `hash_slowly`.
        StorageError: it isn't readable just now.
        """
        digest = entry.digest
        if not self._still(entry):
            return
        stamp = prove_file(self._layout.blob(digest), digest, pause)
        with self._names:
            if not self._still(entry):
                return  # removed or stored anew meanwhile: what was hashed isn't what is there
            if stamp is not None:
                self._index.prove(digest, stamp, self._clock())
                return
            dropped = self._move_away(digest)
            self.damaged += 1
        _log.error("blob dropped", digest=str(digest), size=entry.stamp.size)
        self.delete(dropped)

    def _still(self, entry: Entry) -> bool:
        now = self._index.get(entry.digest)
        return now is not None and (now.stamp, now.verified) == (entry.stamp, entry.verified)

    def candidates(self) -> Iterable[Candidate]:
        """The blobs that may be evicted: neither open nor pinned nor kept."""
        pinned = self._index.pinned() | self.kept
        with self._opening:
            busy = pinned | self._open.keys()
        return [
            Candidate(False, entry.used, entry.digest, entry.stamp.size)
            for entry in self._index.entries()
            if entry.digest not in busy
        ]

    def _closed(self, digest: Digest) -> None:
        with self._opening:
            self._open[digest] -= 1
            if not self._open[digest]:
                del self._open[digest]

    # --- putting on

    def adopt(self, path: Path, fd: int, digest: Digest) -> StoredBlob:
        """Gives the file at `path`, open as `fd`, proved and synced, its final name, durably.

        Raises:
            DiskFull, StorageError: before the renaming, and all is as it was; or the name could not be made durable.
        """
        with storage_errors(f"storing {digest}"):
            with self._names:
                os.rename(path, self._layout.blob(digest))
                stamp = Stamp.of(os.fstat(fd))  # after the renaming, which changes ctime
                now = self._clock()
                self._index.add(Entry(digest, stamp, verified=now, used=now))
            sync_directory(self._layout.blobs(digest.algorithm))
        return StoredBlob(digest, stamp.size)

    def write(self, data: bytes, digest: Digest) -> StoredBlob:
        """Stores small content. DigestMismatch, DiskFull, StorageError: nothing is left of it."""
        got = Digest.of(data, digest.algorithm)
        if got != digest:
            raise DigestMismatch(str(digest), str(got), len(data))
        path = self._layout.staging / f"{digest.algorithm}-{digest.hex}-{next(self._serial)}.tmp"
        with storage_errors(f"writing {digest}"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
                return self.adopt(path, fd, digest)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)

    # --- taking away

    def take_away(self, digest: Digest) -> list[Path]:
        """The blob is no longer there; what is left to `delete`. Nothing if there was none. StorageError."""
        with storage_errors(f"removing {digest}"), self._names:
            return self._move_away(digest)

    def put_away(self, path: Path) -> list[Path]:
        """Moves a file into the trash, if it is there; what is left to `delete`. StorageError."""
        target = self._layout.trash / f"{path.name}-{next(self._serial)}"
        with storage_errors(f"removing {path.name}"):
            try:
                os.rename(path, target)
            except FileNotFoundError:
                return []
        return [target]

    def delete(self, paths: Iterable[Path]) -> None:
        """Deletes files for good. StorageError."""
        with storage_errors("emptying the trash"):
            for path in paths:
                delete(path)

    def _move_away(self, digest: Digest) -> list[Path]:
        """With the lock on names held. The file first: an entry without a file is dropped at the next start."""
        moved = self.put_away(self._layout.blob(digest))
        self._index.drop(digest)
        return moved
