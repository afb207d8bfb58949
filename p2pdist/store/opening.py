"""What happens when a data directory is opened: the lock, the sweep, and the index held against the files.

Blocking: for a worker thread.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store.faults import storage_errors
from p2pdist.store.index import Entry, Index
from p2pdist.store.layout import Layout, delete
from p2pdist.store.partial import Partial, delete_partial, idle_partial
from p2pdist.store.verify import prove_file

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A data directory in order, and ours."""

    lock: int
    index: Index
    partials: dict[Digest, Partial]

    def close(self) -> None:
        self.index.close()
        os.close(self.lock)


def open_directory(layout: Layout, clock: Callable[[], float]) -> Opened:
    """Takes the lock, deletes what a crash left behind, and makes index and files agree.

    A blob file that the index doesn't vouch for (it was lost, or a crash came between rename and index) is hashed
    whole, and deleted if its name was a lie.

    Raises:
        StorageError: another process has the directory, or the disk fails.
        DiskFull
    """
    layout.create()
    lock = _lock(layout)
    try:
        with storage_errors(f"opening {layout.root}"):
            _sweep(layout)
            index = Index.open(layout.index)
            try:
                _reconcile(layout, index, clock)
                partials = _partials(layout, index)
                index.keep_notes({entry.digest for entry in index.entries()} | partials.keys())
                index.flush()
            except BaseException:
                index.close()
                raise
    except BaseException:
        os.close(lock)
        raise
    return Opened(lock, index, partials)


def _lock(layout: Layout) -> int:
    """The open, locked file. The kernel lets go of it when the process ends, however it ends."""
    with storage_errors(f"locking {layout.root}"):
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StorageError(
                f"the data directory {layout.root} is in use by process {holder}; stop it or use another directory"
            ) from error
        except BaseException:
            os.close(fd)
            raise
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # only for the message above: a full disk must not keep the store from opening
            _log.warning("pid not written to the lock file", error=str(error))
        return fd


def _sweep(layout: Layout) -> None:
    for path in (*layout.trash.iterdir(), *layout.staging.glob("*.tmp")):
        delete(path)
    resumable = {layout.part(digest) for digest in layout.journals()}
    for path in layout.staging.glob("*.part"):
        if path not in resumable:
            delete(path)


def _reconcile(layout: Layout, index: Index, clock: Callable[[], float]) -> None:
    files = set(layout.blob_files())
    for entry in index.entries():
        if entry.digest not in files:
            _log.warning("blob file gone", digest=str(entry.digest))
            index.drop(entry.digest)
    unknown = sorted(digest for digest in files if index.get(digest) is None)
    if unknown:
        _log.warning("hashing blobs that the index does not know", blobs=len(unknown), index_lost=index.was_lost)
    for digest in unknown:
        stamp = prove_file(layout.blob(digest), digest)
        if stamp is None:
            os.rename(layout.blob(digest), layout.trash / digest.hex)
            delete(layout.trash / digest.hex)
        else:
            now = clock()
            index.add(Entry(digest, stamp, verified=now, used=min(now, stamp.mtime_ns / 1e9)))


def _partials(layout: Layout, index: Index) -> dict[Digest, Partial]:
    found = {}
    for digest in layout.journals():
        partial = idle_partial(layout, digest) if index.get(digest) is None else None
        if partial is None:  # committed just before a crash, or not to be understood
            delete_partial(layout, digest)
        else:
            found[digest] = partial
    return found
