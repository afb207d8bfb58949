"""Is this file what its name says? Asked of every file the index doesn't vouch for. Blocking: for worker threads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import structlog

from p2pdist.oci import Digest
from p2pdist.store.blob import Stamp
from p2pdist.store.faults import storage_errors
from p2pdist.store.hashing import hash_file, hash_slowly

OPEN_BLOB = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither a link out of the store nor a FIFO that never opens
# What says something of this file, not of this moment (a process out of file descriptors must not delete its blobs).
_UNUSABLE = frozenset({errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EIO})
_log = structlog.get_logger(__name__)


def prove_file(path: Path, digest: Digest, pause: Callable[[int], None] | None = None) -> Stamp | None:
    """Hashes the whole file; the stamp it had before and after if it is `digest`, else None, and why in the log.

    With `pause`: as `hash_slowly`; what it raises comes out.

    Raises:
        StorageError: the file can't be read just now, for a reason that isn't its own.
    """
    with storage_errors(f"proving {digest}"):
        try:
            fd = os.open(path, OPEN_BLOB)
        except OSError as error:
            _unusable(error, digest)
            return None
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                _log.error("blob is not a regular file", digest=str(digest))
                return None
            got = hash_file(fd, digest) if pause is None else hash_slowly(fd, digest, pause)
            stamp = Stamp.of(os.fstat(fd))
        except OSError as error:
            _unusable(error, digest)
            return None
        finally:
            os.close(fd)
    if got != digest.hex:
        _log.error("blob corrupt", digest=str(digest), got=got, size=stamp.size)
        return None
    if stamp != Stamp.of(before):
        _log.error("blob changed while it was proved", digest=str(digest))
        return None
    return stamp


def _unusable(error: OSError, digest: Digest) -> None:
    if error.errno not in _UNUSABLE:
        raise error
    _log.error("blob unusable", digest=str(digest), error=str(error))
