"""Where the operating system's errors become the store's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from p2pdist.errors import DiskFull, StorageError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Translates OSError inside the block; `doing` completes "while ...".

    Raises:
        DiskFull: ENOSPC, EDQUOT or EFBIG.
        StorageError: any other OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFull(
                f"no room while {doing}: {error.strerror}; free some space on the data directory's file system"
            ) from error
        raise StorageError(f"the data directory failed while {doing}: {error}") from error
