"""The store: what it has, what is on its way in, and what has to go. See `layout` for the files."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from p2pdist.errors import DiskFull, InputError, StorageError
from p2pdist.oci import Digest
from p2pdist.protocol.chunks import valid_chunk_size
from p2pdist.store.arrivals import Arrivals
from p2pdist.store.blob import BlobFile, StoredBlob
from p2pdist.store.eviction import choose
from p2pdist.store.faults import storage_errors
from p2pdist.store.index import Entry
from p2pdist.store.journal import Heading
from p2pdist.store.layout import Layout
from p2pdist.store.opening import Opened, open_directory
from p2pdist.store.shelf import Shelf
from p2pdist.store.staging import Staging

T = TypeVar("T")
WORKERS = 4  # threads for hashing, fsync and deletion
REVERIFY_AFTER = 7 * 24 * 3600.0  # seconds: the stamp can't see a disk that forgets, a hash now and then can
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the store is. Sizes in bytes; `staging` counts open stagings whole and idle ones by what they take.

    `kept`: of what is stored, that which may not be evicted. `refused`: how often there was no room for something.
    `rechecked`: bytes that were hashed again in the background. `damaged`: blobs that were not what their digests say.
    """

    blobs: int
    stored: int
    partials: int
    staging: int
    max_bytes: int | None
    kept: int
    refused: int
    rechecked: int
    damaged: int


class Store:
    """Content-addressed blobs in one directory, used by one process. Made by `open`, ended by `close`.

    A blob is found once its whole digest was proved and it is durable under its final name. Every step that changes a
    final name or the index is done under one lock or wholly in one thread, so a coroutine that is cancelled while it
    waits leaves nothing half done: the work goes on to its end.
    """

    def __init__(
        self,
        layout: Layout,
        opened: Opened,
        pool: ThreadPoolExecutor,
        max_bytes: int | None,
        reverify_after: float,
        clock: Callable[[], float],
    ) -> None:
        self._layout = layout
        self._opened = opened
        self._index = opened.index
        self._shelf = Shelf(layout, opened.index, clock)
        self._arrivals = Arrivals(layout, self._shelf, pool, opened.partials)
        self._pool = pool
        self._max_bytes = max_bytes
        self._reverify_after = reverify_after
        self._clock = clock
        self._verifying: dict[Digest, Future[None]] = {}
        self._enough = threading.Event()  # no blob is hashed in the background any longer
        self._slow = ThreadPoolExecutor(1, "store-recheck")  # of its own: it takes its time
        self._refused = self._rechecked = 0
        self._closed = False

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        max_bytes: int | None = None,
        reverify_after: float = REVERIFY_AFTER,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Opens (or makes) the data directory. Without a usable index this hashes every blob in it.

        Args:
            max_bytes: how much the blobs may take together; None: as much as the disk has.
            reverify_after: seconds after which a blob is hashed again before it is given out.
            clock: seconds since the epoch.

        Raises:
            StorageError: another process uses the directory, or it can't be used.
            DiskFull: no room for the index.
        """
        layout = Layout(directory)
        pool = ThreadPoolExecutor(WORKERS, "store")
        opening = pool.submit(open_directory, layout, clock)
        try:
            opened = await asyncio.shield(asyncio.wrap_future(opening))
        except BaseException:
            opening.add_done_callback(_close_unwanted)  # cancelled: what will be opened is closed at once
            pool.shutdown(wait=False)
            raise
        return cls(layout, opened, pool, max_bytes, reverify_after, clock)

    async def close(self) -> None:
        """Closes open stagings (keeping what is proved), finishes the work under way, and lets go of the directory."""
        if self._closed:
            return
        self._closed = True
        try:
            for staging in self._arrivals.stagings():
                await staging.close()
        finally:
            await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._enough.set()
        self._slow.shutdown()
        self._pool.shutdown()
        self._opened.close()

    # --- whole blobs

    def find(self, digest: Digest) -> StoredBlob | None:
        """The blob, if the index has it. Whether its bytes are still good shows when it is opened."""
        entry = self._index.get(digest)
        return None if entry is None else StoredBlob(digest, entry.stamp.size)

    def stored(self) -> list[StoredBlob]:
        """All blobs, as `find` gives them."""
        return [StoredBlob(entry.digest, entry.stamp.size) for entry in self._index.entries()]

    async def open_blob(self, digest: Digest) -> BlobFile | None:
        """The open blob, its bytes proved; None if there is none, or no longer.

        Proved: the file's stamp is the one it had when it was last hashed, and that isn't too long ago. Otherwise it is
        hashed now, before the first byte is given out; if that fails the file is deleted and the reason logged.

        Raises:
            StorageError: it can't be read just now, for a reason that isn't its own.
        """
        self._must_be_open()
        max_age: float | None = self._reverify_after
        for _ in range(3):  # a blob that changes again and again while it is hashed is no blob
            entry = self._index.get(digest)
            if entry is None:
                return None
            file = self._shelf.open_unchanged(digest, max_age)
            if file is not None:
                return file
            await self._reverify(entry)
            max_age = None
        return None

    async def recheck_oldest(self, rate: int) -> Digest | None:
        """Hashes the one blob whose proof is oldest, if it has passed half of its time: its digest; None: none has.

        At most `rate` bytes are read in a second, from the disk itself. A reader never waits for it. Whether the blob
        is still there afterwards, `find` says; once the caller is cancelled, reading soon ends.

        Raises:
            StorageError: it can't be read just now.
        """
        self._must_be_open()
        entry = min(self._index.entries(), key=lambda entry: entry.verified, default=None)
        if entry is None or 0 <= self._clock() - entry.verified < self._reverify_after / 2:
            return None
        enough = self._enough = threading.Event()

        def pause(count: int) -> None:
            self._rechecked += count
            if enough.wait(count / rate):
                raise StorageError("the store is being closed")

        try:
            await asyncio.wrap_future(self._slow.submit(partial(self._shelf.reverify, entry, pause)))
        finally:
            enough.set()
        return entry.digest

    async def put(self, data: bytes, digest: Digest) -> StoredBlob:
        """Stores small content that is in memory.

        Raises:
            DigestMismatch: `data` isn't what `digest` says.
            DiskFull: no room.
            StorageError
        """
        self._must_be_open()
        known = self._shelf.open_unchanged(digest, None)
        if known is not None:
            known.close()
            return StoredBlob(digest, known.size)
        await self._make_room(len(data), str(digest))
        return await self._run(partial(self._shelf.write, bytes(data), digest))

    async def remove(self, digest: Digest) -> None:
        """Deletes the blob, if it is there, whoever has it open (they may read on) and whether or not it is pinned.

        A partial one goes too, unless it is being filled.
        """
        self._must_be_open()
        left = self._shelf.take_away(digest) + self._arrivals.take_away(digest)
        await self._run(partial(self._shelf.delete, left))

    # --- partial blobs

    async def stage(self, digest: Digest, size: int, chunk_size: int) -> Staging:
        """Begins to fill a blob of `size` bytes, or goes on with a partial one of the same size and chunk size.

        A partial one of other sizes is deleted. Room for all of it is made first.

        Raises:
            InputError: sizes that the protocol doesn't allow.
            DiskFull: it can't fit, whatever is evicted.
            StorageError: it is being staged already, or the disk fails.
        """
        if size < 0 or not valid_chunk_size(size, chunk_size):
            raise InputError(f"{digest}: {size} bytes in chunks of {chunk_size}")
        self._must_be_open()
        heading = Heading(digest, size, chunk_size)
        self._arrivals.expect(heading)
        try:
            await self._make_room(0, str(digest))
            self._must_be_open()
        except BaseException:
            self._arrivals.settle(digest)
            raise
        return await self._arrivals.open(heading)

    def partials(self) -> list[tuple[Digest, int, int]]:
        """Digest, size and chunk size of every partial blob that nobody has open."""
        return [(heading.digest, heading.size, heading.chunk_size) for heading in self._arrivals.idle()]

    # --- what is known of blobs

    def pin(self, digest: Digest) -> None:
        """Never evict this blob; may be said before it is there, and holds over restarts."""
        self._index.pin(digest)

    def unpin(self, digest: Digest) -> None:
        """The reverse of `pin`."""
        self._index.unpin(digest)

    def keep(self, digests: frozenset[Digest]) -> None:
        """Never evict these, there or not; replaces what was said before, and holds until a restart."""
        self._shelf.kept = digests

    def pulled(self, digest: Digest) -> None:
        """A daemon asked for this manifest just now; forgotten with the manifest."""
        self._index.pulled(digest, self._clock())

    def pulls(self) -> dict[Digest, float]:
        """Manifests that a daemon asked for, and when (seconds since the epoch, exact to a minute)."""
        return self._index.pulls()

    def noted(self) -> dict[Digest, dict[str, str]]:
        """What `note` was told: repository to media type, by digest."""
        return self._index.noted()

    def tags(self) -> dict[tuple[str, str], str]:
        """What `set_tag` was told: digest by repository and tag."""
        return self._index.tags()

    def note(self, digest: Digest, repository: str, media_type: str) -> None:
        """`digest` was seen in `repository` as `media_type`. Forgotten with the blob."""
        self._index.note(digest, repository, media_type)

    def media_type(self, digest: Digest) -> str | None:
        """As it was noted; None if it wasn't."""
        return next(reversed(self._index.notes(digest).values()), None)

    def repositories(self, digest: Digest) -> set[str]:
        """Where it was noted."""
        return set(self._index.notes(digest))

    def tag(self, repository: str, tag: str) -> tuple[str, float] | None:
        """The digest that `tag` was last seen to name, and when (seconds since the epoch)."""
        return self._index.tag(repository, tag)

    def set_tag(self, repository: str, tag: str, digest: str, seen: float) -> None:
        """Remembers a tag, over restarts."""
        self._index.set_tag(repository, tag, digest, seen)

    def usage(self) -> Usage:
        """How full it is."""
        partials = len(self._arrivals.idle()) + len(self._arrivals.active())
        entries = self._index.entries()
        fixed = self._index.pinned() | self._shelf.kept
        kept = sum(entry.stamp.size for entry in entries if entry.digest in fixed)
        held = self._arrivals.held()
        return Usage(
            *(len(entries), self._index.bytes, partials, held, self._max_bytes, kept),
            refused=self._refused,
            rechecked=self._rechecked,
            damaged=self._shelf.damaged,
        )

    # --- inside

    async def _run(self, work: Callable[[], T]) -> T:
        """Waits for `work` in a worker thread; it goes on to its end if the caller is cancelled."""
        self._must_be_open()  # also if it was closed while the caller waited for something else
        return await asyncio.shield(asyncio.wrap_future(self._pool.submit(work)))

    async def _reverify(self, entry: Entry) -> None:
        """Hashes a blob, once for all who wait for that."""
        digest = entry.digest
        hashing = self._verifying.get(digest)
        if hashing is None or hashing.done():
            hashing = self._verifying[digest] = self._pool.submit(partial(self._shelf.reverify, entry))
        try:
            await asyncio.shield(asyncio.wrap_future(hashing))
        finally:
            if hashing.done() and self._verifying.get(digest) is hashing:
                del self._verifying[digest]

    async def _make_room(self, extra: int, what: str) -> None:
        """Evicts until all that is staged and `extra` bytes fit. What has to go is decided, and gone, in one step."""
        taken = self._index.bytes + self._arrivals.held()
        needed = 0 if self._max_bytes is None else taken + extra - self._max_bytes
        with storage_errors("looking at the free space"):
            disk = os.statvfs(self._layout.root)
            if disk.f_blocks:  # some file systems don't say
                needed = max(needed, self._arrivals.outstanding() + extra - disk.f_bavail * disk.f_frsize)
        if needed <= 0:
            return
        staged = self._arrivals.active()
        candidates = [one for one in self._shelf.candidates() if one.digest not in staged]
        candidates += self._arrivals.candidates()
        victims = choose(candidates, needed)
        if victims is None:
            self._refused += 1
            evictable = sum(one.size for one in candidates)
            kept = self.usage().kept
            _log.error("the store is full", wanted=what, needed=needed, evictable=evictable, kept=kept)
            raise DiskFull(
                f"no room for {what}: {needed} bytes too many (max_bytes: {self._max_bytes}), what could go has"
                f" {evictable}, what is to be kept {kept}; raise max_bytes, free disk space or keep fewer images"
            )
        left: list[Path] = []
        for victim in victims:
            _log.info("evicted", digest=str(victim.digest), size=victim.size, partial=victim.partial)
            left += (self._arrivals if victim.partial else self._shelf).take_away(victim.digest)
        await self._run(partial(self._shelf.delete, left))

    def _must_be_open(self) -> None:
        if self._closed:
            raise StorageError("the store is closed")


def _close_unwanted(opening: Future[Opened]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
