"""The files of one partial blob: the bytes, and the journal of what is proved. Blocking: for worker threads.

The file of bytes is sparse (`ftruncate`, no `posix_fallocate`): it has its final size at once, so that any chunk can be
written at its place, and takes only the room of what was fetched. Allocating all of it at the start would find a full
disk earlier, but costs the whole size for a pull that ends early, and where the file system can't do it the C library
writes every block, which doubles the writing. The store looks at the free space instead, before it starts.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from p2pdist.oci import Digest
from p2pdist.protocol.chunks import chunk_count, chunk_range
from p2pdist.store.faults import storage_errors
from p2pdist.store.hashing import feed
from p2pdist.store.journal import Claim, Heading, Journal
from p2pdist.store.layout import Layout

_FLAGS = os.O_RDWR | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Partial:
    """A partial blob that nobody has open. `allocated`: bytes it takes on disk; `changed`: seconds since the epoch."""

    heading: Heading
    allocated: int
    changed: float


@dataclass(frozen=True, slots=True)
class OpenPartial:
    """The open files, and the chunks whose bytes are in the file for certain."""

    heading: Heading
    fd: int
    journal: Journal
    claims: dict[int, Claim]

    def close(self) -> None:
        os.close(self.fd)
        self.journal.close()


def chunk_sha256(fd: int, heading: Heading, index: int) -> bytes:
    """The sha256 of chunk `index` as it is in the file now (32 bytes)."""
    hasher = hashlib.sha256()
    feed(hasher, fd, *chunk_range(index, heading.size, heading.chunk_size))
    return hasher.digest()


def open_partial(layout: Layout, heading: Heading) -> OpenPartial:
    """Resumes the partial blob of exactly this heading, or begins a new one.

    Every chunk that the journal claims is hashed again; what doesn't match is no longer claimed.

    Raises:
        DiskFull, StorageError
    """
    with storage_errors(f"staging {heading.digest}"):
        return _resume(layout, heading) or _begin(layout, heading)


def _resume(layout: Layout, heading: Heading) -> OpenPartial | None:
    found = idle_partial(layout, heading.digest)
    if found is None or found.heading != heading:
        return None
    with ExitStack() as opened:
        fd = _opened(layout.part(heading.digest), _FLAGS, opened)
        journal, claims = Journal.resume(_opened(layout.journal(heading.digest), _FLAGS, opened), heading)
        for index in sorted(claims):
            known = index < chunk_count(heading.size, heading.chunk_size)
            if not known or chunk_sha256(fd, heading, index) != claims[index].sha256:
                journal.drop(index)
                del claims[index]
        opened.pop_all()
        return OpenPartial(heading, fd, journal, claims)


def _begin(layout: Layout, heading: Heading) -> OpenPartial:
    delete_partial(layout, heading.digest)
    with ExitStack() as opened:
        opened.callback(delete_partial, layout, heading.digest)
        fd = _opened(layout.part(heading.digest), _FLAGS | os.O_CREAT | os.O_EXCL, opened)
        os.ftruncate(fd, heading.size)
        journal_fd = _opened(layout.journal(heading.digest), _FLAGS | os.O_CREAT | os.O_EXCL, opened)
        journal = Journal.create(journal_fd, heading)
        opened.pop_all()
        return OpenPartial(heading, fd, journal, {})


def _opened(path: Path, flags: int, closing: ExitStack) -> int:
    fd = os.open(path, flags, 0o600)
    closing.callback(os.close, fd)
    return fd


def delete_partial(layout: Layout, digest: Digest) -> None:
    """Deletes both files, if they are there. The journal first: bytes without one are swept up at the next start."""
    layout.journal(digest).unlink(missing_ok=True)
    layout.part(digest).unlink(missing_ok=True)


def idle_partial(layout: Layout, digest: Digest) -> Partial | None:
    """The partial blob of `digest` on disk; None if there is none that could be resumed."""
    try:
        fd = os.open(layout.journal(digest), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            heading = Heading.read(fd)
        finally:
            os.close(fd)
        status = os.stat(layout.part(digest), follow_symlinks=False)
    except FileNotFoundError:
        return None
    if heading is None or heading.digest != digest or status.st_size != heading.size:
        return None
    return Partial(heading, status.st_blocks * 512, status.st_mtime)
