"""What is never evicted: images that somebody said are to be kept, and those that daemons asked for lately.

A pattern keeps what it names now: when a tag moves, what it named before may go. The images that daemons asked for
within `running_seconds` are kept too, the latest first, as far as they take half of the store. An image is all that
belongs to it: index, manifests, config, layers, signatures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from p2pdist.config import AgentConfig
from p2pdist.errors import InputError, StorageError
from p2pdist.oci import Digest, ImagePattern, Index, Manifest, Repository
from p2pdist.pki import read_secret, write_secret
from p2pdist.store import Store
from p2pdist.store.catalogue import Catalogue, Node, closure, signed_by, size_of
from p2pdist.store.retention import RUNNING_SHARE, kept_roots, running_roots, within

MAX_KEEPS = 1024  # patterns, besides those of the configuration
SETTLE, LOOK = 5.0, 60.0  # seconds between two looks at what is to be kept: at least, at most
_log = structlog.get_logger("p2pdist.retention")


class Keep(msgspec.Struct, frozen=True):
    """One thing to keep. `until`: Unix seconds, 0: for ever. `origin`: who said so, for people."""

    pattern: str
    until: float = 0.0
    origin: str = ""


class Retention:
    """`load` it, then `run` it as long as the store is open. `file` remembers what was added."""

    def __init__(
        self,
        store: Store,
        file: Path,
        configured: Iterable[ImagePattern],
        running_seconds: float,
        max_bytes: int | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._catalogue = Catalogue(store)
        self._file = file
        self._configured = list(configured)
        self._running_seconds = running_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._keeps: dict[str, tuple[ImagePattern, Keep]] = {}
        self._told: set[Digest] = set()  # all that the patterns name now
        self._companions: dict[Digest, set[Digest]] = {}  # what signs each image
        self._wake = asyncio.Event()

    @classmethod
    def of(cls, config: AgentConfig, store: Store) -> Retention:
        """As an agent's configuration has it."""
        patterns = [ImagePattern.parse(text) for text in config.store.keep]
        running = config.store.running_seconds or 0.0
        return cls(store, config.node.data_dir / "keep.json", patterns, running, config.node.max_store_bytes)

    @property
    def catalogue(self) -> Catalogue:
        """What the stored manifests name."""
        return self._catalogue

    async def load(self) -> None:
        """Read what was to be kept, and keep it from now on. Raises StorageError."""
        raw = await asyncio.to_thread(read_secret, self._file)
        try:
            keeps = msgspec.json.decode(raw, type=list[Keep]) if raw else []
            self._keeps = {keep.pattern: (ImagePattern.parse(keep.pattern), keep) for keep in keeps}
        except (msgspec.DecodeError, InputError) as error:
            raise StorageError(
                f"{self._file}: not a list of what is to be kept: {error}; restore or delete it"
            ) from error
        await self.look()

    async def run(self) -> None:
        """Follow tags that move and times that end, for ever."""
        while True:
            try:
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.look()
            await asyncio.sleep(SETTLE)

    # --- what is said -------------------------------------------------------------------------------------------

    async def add(self, text: str, seconds: float | None = None, origin: str = "an operator") -> Keep:
        """Keep what `text` names, for so long (None: for ever). InputError, StorageError."""
        pattern = ImagePattern.parse(text)
        if len(self._keeps) >= MAX_KEEPS and pattern.text not in self._keeps:
            self._make_place()
        keep = Keep(pattern.text, 0.0 if seconds is None else self._clock() + seconds, origin)
        self._keeps[pattern.text] = pattern, keep
        await self._save()
        await self.look()
        return keep

    def _make_place(self) -> None:
        """What ends soonest of what is kept for a time gives way; what is kept for ever never does. InputError."""
        ending = [keep for _, keep in self._keeps.values() if keep.until]
        if not ending:
            raise InputError(f"{MAX_KEEPS} images and patterns are kept already; remove some first")
        soonest = min(ending, key=lambda keep: keep.until)
        _log.warning("too much is kept: what ends soonest gives way", images=soonest.pattern, by=soonest.origin)
        del self._keeps[soonest.pattern]

    async def remove(self, text: str) -> bool:
        """Keep it no longer; False: it wasn't in the list. InputError, StorageError."""
        known = self._keeps.pop(ImagePattern.parse(text).text, None)
        await self._save()
        await self.look()
        return known is not None

    def listed(self) -> list[dict[str, Any]]:
        """Everything that is to be kept, with what there is of it: `blobs`, `bytes`."""
        nodes, tags, noted = self._catalogue.nodes, self._store.tags(), self._store.noted()
        companions, sizes = signed_by(nodes, tags), self._sizes()
        configured = [Keep(pattern.text, 0.0, "the configuration") for pattern in self._configured]
        rows = []
        for keep in [*configured, *(keep for _, keep in self._keeps.values())]:
            there = closure(nodes, companions, kept_roots([ImagePattern.parse(keep.pattern)], tags, noted))
            held = [sizes[digest] for digest in there if digest in sizes]
            rows.append(msgspec.structs.asdict(keep) | {"blobs": len(held), "bytes": sum(held)})
        return rows

    async def _save(self) -> None:
        raw = msgspec.json.encode([keep for _, keep in self._keeps.values()])
        await asyncio.to_thread(write_secret, self._file, raw)

    # --- what happens -------------------------------------------------------------------------------------------

    def passed(self, repository: Repository, target: str, parsed: Manifest | Index, *, pulled: bool) -> None:
        """A manifest came by, for a daemon (`pulled`) or not: from now on all of its image is kept, if it is to be.

        So that there is room for it, older images that were running cease to be kept at once.
        """
        self._catalogue.learn(parsed)
        if pulled:
            self._store.pulled(parsed.digest)
        tag = None if ":" in target else target
        nodes = self._catalogue.nodes
        if parsed.digest in self._told or any(
            one.matches(str(repository), tag, parsed.digest) for one in self._patterns()
        ):
            self._told |= closure(nodes, self._companions, [parsed.digest])
        self._keep(nodes)
        self._wake.set()

    async def look(self) -> None:
        """Decide anew what is kept."""
        now = self._clock()
        ended = [text for text, (_, keep) in self._keeps.items() if 0 < keep.until <= now]
        for text in ended:
            del self._keeps[text]
        try:
            if ended:
                await self._save()
            nodes = await self._catalogue.refresh()
            tags = self._store.tags()  # nothing is waited for from here on: no manifest passes in between
            companions = signed_by(nodes, tags)
            told = closure(nodes, companions, kept_roots(self._patterns(), tags, self._store.noted()))
        except (StorageError, InputError) as error:  # InputError: the index holds what is no digest
            _log.error("what is kept stays as it was", error=str(error))
            return
        self._told, self._companions = told, companions
        self._keep(nodes)

    def _keep(self, nodes: Mapping[Digest, Node]) -> None:
        running = running_roots(self._store.pulls(), self._clock(), self._running_seconds)
        room = float("inf") if self._max_bytes is None else RUNNING_SHARE * self._max_bytes
        images = (size_of(nodes, closure(nodes, self._companions, [root])) for root in running)
        self._store.keep(frozenset(self._told | within(images, room)))

    def _patterns(self) -> list[ImagePattern]:
        return [*self._configured, *(pattern for pattern, _ in self._keeps.values())]

    def _sizes(self) -> dict[Digest, int]:
        return {blob.digest: blob.size for blob in self._store.stored()}
