"""Where the operating system's errors become the store's."""

from __future__ import annotations

import errno
from types import TracebackType

from p2pdist.errors import DiskFull, StorageError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class storage_errors:
    """Translates OSError inside the block; `doing` and what it is done to complete "while ...".

    A class, not a generator, and put into words only when it is needed: this is on the way of every chunk.

    Raises:
        DiskFull: ENOSPC, EDQUOT or EFBIG.
        StorageError: any other OSError.
    """

    __slots__ = ("_doing", "_what")

    def __init__(self, doing: str, what: object = "") -> None:
        self._doing = doing
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        doing = f"{self._doing} {self._what}".rstrip()
        if error.errno in _NO_ROOM:
            raise DiskFull(
                f"no room while {doing}: {error.strerror}; free some space on the data directory's file system"
            ) from error
        raise StorageError(f"the data directory failed while {doing}: {error}") from error
