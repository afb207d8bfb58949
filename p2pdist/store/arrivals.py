"""The partial blobs: which are open, which lie idle, and how much room they take or will take."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store.blob import StoredBlob
from p2pdist.store.eviction import Candidate
from p2pdist.store.faults import storage_errors
from p2pdist.store.journal import Heading
from p2pdist.store.layout import Layout
from p2pdist.store.partial import OpenPartial, Partial, delete_partial, idle_partial, open_partial
from p2pdist.store.shelf import Shelf
from p2pdist.store.staging import Staging

T = TypeVar("T")


@dataclass(slots=True)
class _Active:
    """A partial blob that is open, or being opened. `there`: bytes of it that were on disk at the start."""

    size: int
    there: int
    staging: Staging | None = None

    def outstanding(self) -> int:
        """Bytes of it that the disk has still to take."""
        there = self.there
        if self.staging is not None and self.staging.fd >= 0:
            there = os.fstat(self.staging.fd).st_blocks * 512
        return max(0, self.size - there)


class Arrivals:
    """Opens, resumes and closes partial blobs; the home of every `Staging`."""

    def __init__(self, layout: Layout, shelf: Shelf, pool: ThreadPoolExecutor, idle: dict[Digest, Partial]) -> None:
        self._layout = layout
        self._shelf = shelf
        self._pool = pool
        self._lock = threading.Lock()  # guards the two below
        self._active: dict[Digest, _Active] = {}
        self._idle = dict(idle)

    # --- one partial blob

    def expect(self, heading: Heading) -> None:
        """Sets the room of one aside, before it is opened; `open` or `settle` must follow. StorageError: it is open."""
        with self._lock:
            if heading.digest in self._active:
                raise StorageError(f"{heading.digest} is being staged already")
            idle = self._idle.pop(heading.digest, None)
            there = idle.allocated if idle is not None and idle.heading == heading else 0
            self._active[heading.digest] = _Active(heading.size, there)

    async def open(self, heading: Heading) -> Staging:
        """Opens the files of one that is expected. DiskFull, StorageError, cancelled: it is settled again."""
        opening = self.submit(partial(open_partial, self._layout, heading))
        try:
            opened = await asyncio.shield(asyncio.wrap_future(opening))
        except BaseException:
            opening.add_done_callback(partial(self._close_unwanted, heading.digest))
            raise
        staging = Staging(opened, self)
        self._active[heading.digest].staging = staging
        return staging

    def settle(self, digest: Digest) -> None:
        """Nobody has it open any longer; what is on disk may be resumed."""
        idle = None
        try:
            with storage_errors(f"closing the partial {digest}"):
                idle = idle_partial(self._layout, digest)
        finally:
            with self._lock:
                self._active.pop(digest, None)
                if idle is not None:
                    self._idle[digest] = idle

    def _close_unwanted(self, digest: Digest, opening: Future[OpenPartial]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        self.settle(digest)

    # --- what a staging asks of its home

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` in a worker thread."""
        return self._pool.submit(work)

    def adopt(self, opened: OpenPartial) -> StoredBlob:
        """Stores the file of one whose digest is proved and that is synced. For a worker thread."""
        digest = opened.heading.digest
        stored = self._shelf.adopt(self._layout.part(digest), opened.fd, digest)
        with self._lock:
            self._active[digest].size = 0  # it counts as a blob from now on
        with storage_errors(f"storing {digest}"):
            self._layout.journal(digest).unlink(missing_ok=True)
        return stored

    def release(self, opened: OpenPartial, keep: bool) -> None:
        """A staging was closed. For a worker thread."""
        digest = opened.heading.digest
        try:
            if not keep:
                with storage_errors(f"deleting the partial {digest}"):
                    delete_partial(self._layout, digest)
        finally:
            self.settle(digest)

    # --- all of them

    def stagings(self) -> list[Staging]:
        """The open ones."""
        with self._lock:
            return [active.staging for active in self._active.values() if active.staging is not None]

    def idle(self) -> list[Heading]:
        """Those that nobody has open."""
        with self._lock:
            return [idle.heading for idle in self._idle.values()]

    def active(self) -> set[Digest]:
        """Those that are open or expected."""
        with self._lock:
            return set(self._active)

    def held(self) -> int:
        """Bytes set aside: open ones whole, idle ones by what they take on disk."""
        with self._lock:
            return sum(one.size for one in self._active.values()) + sum(one.allocated for one in self._idle.values())

    def outstanding(self) -> int:
        """Bytes that the open ones will still take from the disk."""
        with self._lock:
            return sum(one.outstanding() for one in self._active.values())

    def candidates(self) -> list[Candidate]:
        """The idle ones, for eviction."""
        with self._lock:
            return [Candidate(True, idle.changed, digest, idle.allocated) for digest, idle in self._idle.items()]

    def take_away(self, digest: Digest) -> list[Path]:
        """An idle one is no longer there; what is left to delete. Nothing if there is none."""
        with self._lock:
            if self._idle.pop(digest, None) is None:
                return []
        journal, part = self._layout.journal(digest), self._layout.part(digest)
        return self._shelf.put_away(journal) + self._shelf.put_away(part)
