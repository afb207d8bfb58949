"""The files under torrents. Blocking: for the engine's thread, except `scratch`, which only makes a name.

While a blob is fetched, libtorrent writes to a file of the engine's own and never to the staging: with its checks off
it takes whatever comes, and may write a late block over what a lease brought (docs/adr/0020). The file is unlinked as
soon as it is open, so a crash leaves nothing that could later be taken for a blob.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pdist.errors import StorageError
from p2pdist.protocol.chunks import chunk_count, chunk_range

_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cut:
    """How a blob is cut; sizes in bytes."""

    size: int
    chunk_size: int

    def span(self, index: int) -> tuple[int, int]:
        """First byte and length of a chunk."""
        start, end = chunk_range(index, self.size, self.chunk_size)
        return start, end - start


def scratch(directory: Path, size: int) -> int:
    """A descriptor of a new, sparse, nameless file of `size` bytes in `directory`. StorageError."""
    path = directory / f"scratch-{secrets.token_hex(8)}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.unlink(path)
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise StorageError(f"no scratch file in {directory}: {error}") from error
    return fd


def sweep(directory: Path) -> None:
    """Make the directory, and delete what a crash between two system calls may have left in it. StorageError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in directory.glob("scratch-*"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{directory} can't be used: {error}") from error


def read_chunk(fd: int, cut: Cut, index: int) -> bytes:
    """One chunk; StorageError if the file is shorter or can't be read."""
    start, length = cut.span(index)
    try:
        data = os.pread(fd, length, start)
    except OSError as error:
        raise StorageError(f"chunk {index} can't be read: {error}") from error
    if len(data) != length:
        raise StorageError(f"chunk {index} ends after {len(data)} of {length} bytes")
    return data


def same_chunk(one: int, other: int, cut: Cut, index: int) -> bool:
    """Whether both files have the same bytes there."""
    return read_chunk(one, cut, index) == read_chunk(other, cut, index)


def copy_chunks(source: int, target: int, cut: Cut, indexes: Iterable[int]) -> None:
    """Copy chunks between files. StorageError."""
    for index in indexes:
        data = memoryview(read_chunk(source, cut, index))
        start, _ = cut.span(index)
        try:
            while data:
                count = os.pwrite(target, data, start)
                data, start = data[count:], start + count
        except OSError as error:
            raise StorageError(f"chunk {index} can't be copied: {error}") from error


def chunk_map(fd: int, cut: Cut) -> bytes:
    """The SHA-1 of every chunk, 20 bytes each (what version 1 torrents are made of). Closes `fd`. StorageError."""
    hashes = bytearray()
    try:
        for index in range(chunk_count(cut.size, cut.chunk_size)):
            hasher = hashlib.sha1(usedforsecurity=False)
            start, length = cut.span(index)
            while length:
                data = os.pread(fd, min(_PIECE, length), start)
                if not data:
                    raise StorageError(f"chunk {index} ends {length} bytes early")
                hasher.update(data)
                start, length = start + len(data), length - len(data)
            hashes += hasher.digest()
    except OSError as error:
        raise StorageError(f"the blob can't be read: {error}") from error
    finally:
        os.close(fd)
    return bytes(hashes)
