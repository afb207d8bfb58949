"""What the store hands out: `StoredBlob`, a fact, and `BlobFile`, an open file whose bytes are proved."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store.faults import storage_errors


@dataclass(frozen=True, slots=True)
class Stamp:
    """What `stat` said of a file when its bytes were proved. Any difference: the bytes are proved no longer.

    `ctime_ns` is what makes it strong: no system call sets it, so a change can't be hidden by setting the times back.
    """

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that was proved whole and is in the store. Only the store makes these. `size` in bytes."""

    digest: Digest
    size: int


class BlobFile:
    """An open, proved blob. The file descriptor stays good until `close`, also when the blob is removed meanwhile.

    While one is open, its blob is not evicted. A context manager.
    """

    def __init__(self, digest: Digest, size: int, fd: int, on_close: Callable[[], None] | None = None) -> None:
        self.digest = digest
        self.size = size
        self.fd = fd
        self._on_close = on_close

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at its end. StorageError: closed, or the disk fails."""
        if self.fd < 0:
            raise StorageError(f"{self.digest}: read of a closed file")
        with storage_errors("reading", self.digest):
            return os.pread(self.fd, max(0, min(length, self.size - offset)), offset)

    def close(self) -> None:
        """Gives the file descriptor back; a second call does nothing."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        os.close(fd)
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<BlobFile {self.digest} size={self.size} fd={self.fd}>"
