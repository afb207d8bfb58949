"""What one decision has read so far: its limits, its requests, what it found and what it had to leave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from p2pdist.errors import InvalidManifest, UpstreamDenied, UpstreamError
from p2pdist.oci import Digest, Manifest, Repository, parse_manifest
from p2pdist.trust import limits
from p2pdist.trust.evidence import Candidate, Evidence, Form, Unread
from p2pdist.trust.fields import crowded
from p2pdist.trust.refusal import shown
from p2pdist.trust.source import SignatureSource

_MAX_UNREAD = 256


class Collector:
    """Reads from `source` for one image. Nothing here raises over what comes: it is noted, and the rest goes on."""

    def __init__(self, source: SignatureSource, repository: Repository, digest: Digest) -> None:
        self.source = source
        self.repository = repository
        self.digest = digest
        self._parallel = asyncio.Semaphore(limits.PARALLEL)
        self._found: list[Candidate] = []
        self._unread: list[Unread] = []
        self._bytes = 0
        self._requests = 0
        self._deepest = 0

    def evidence(self) -> Evidence:
        """What has been found so far."""
        order = sorted(self._found, key=lambda candidate: _natural(candidate.where))
        return Evidence(tuple(order), tuple(self._unread), self._requests, self._deepest, self._bytes)

    def found(self, candidate: Candidate) -> None:
        """Note a candidate."""
        self._found.append(candidate)

    def miss(self, form: Form | None, where: str, reason: str, *, fault: bool = False) -> None:
        """Note something that is not looked at. `fault`: it could not be fetched for the moment."""
        if len(self._unread) < _MAX_UNREAD:
            self._unread.append(Unread(form, where, shown(reason), fault))

    def take_bytes(self, form: Form | None, where: str, size: int, limit: int) -> bool:
        """Whether `size` bytes may be read: of this thing, and of all together."""
        if size > limit:
            self.miss(form, where, f"declares {size} bytes; at most {limit} are read")
            return False
        if self._bytes + size > limits.TOTAL:
            self.miss(form, where, f"more than {limits.TOTAL} bytes of signatures")
            return False
        self._bytes += size
        return True

    @asynccontextmanager
    async def request(self, form: Form | None, where: str, depth: int) -> AsyncIterator[None]:
        """One request: counted, few at a time, its failure noted and not raised.

        `depth`: how many requests, one after the other, it takes to know that this one is needed, plus one.
        """
        async with self._parallel:
            self._requests += 1
            self._deepest = max(self._deepest, depth)
            try:
                yield
            except UpstreamError as error:
                # Denied: another client's authorization may do, so it must not be remembered for all.
                passing = error.temporary or isinstance(error, UpstreamDenied)
                self.miss(form, where, f"can't be fetched: {error}", fault=passing)

    async def manifest_by_tag(self, tag: str, form: Form | None, where: str, depth: int) -> bytes | None:
        """A manifest within the limits; None where there is none, or it can't be had."""
        raw = await self._manifest(tag, form, where, depth)
        if raw is None or not self.take_bytes(form, where, len(raw), limits.SIGNATURE_MANIFEST):
            return None
        return raw

    async def manifest_by_digest(self, digest: Digest, size: int, where: str, depth: int) -> bytes | None:
        """A manifest that something lists with this size; None as above, or when its bytes have another digest."""
        if not self.take_bytes(None, where, size, limits.SIGNATURE_MANIFEST):
            return None
        raw = await self._manifest(str(digest), None, where, depth)
        if raw is None or (len(raw) == size and Digest.of(raw, digest.algorithm) == digest):
            return raw
        self.miss(None, where, "its bytes have another digest or size than the list says")
        return None

    async def _manifest(self, target: str, form: Form | None, where: str, depth: int) -> bytes | None:
        raw = None
        async with self.request(form, where, depth):
            raw = await self.source.manifest(self.repository, target, limits.SIGNATURE_MANIFEST)
        return raw

    async def blob(self, digest: Digest, size: int, form: Form, where: str, depth: int) -> bytes | None:
        """A blob whose bytes have been taken into account; None when it can't be had or has another digest."""
        raw = None
        async with self.request(form, where, depth):
            raw = await self.source.blob(self.repository, digest, size)
        if raw is None or (len(raw) == size and Digest.of(raw, digest.algorithm) == digest):
            return raw
        self.miss(form, where, "its bytes have another digest or size than the manifest says")
        return None

    def parsed(self, raw: bytes, form: Form | None, where: str) -> Manifest | None:
        """The manifest in `raw`; None when it is malformed or an index."""
        if crowded(raw, limits.CROWD):
            self.miss(form, where, f"more than {limits.CROWD} values")
            return None
        try:
            manifest = parse_manifest(raw, None)
        except InvalidManifest as error:
            self.miss(form, where, str(error))
            return None
        if not isinstance(manifest, Manifest):
            self.miss(form, where, "an index where a manifest with signatures is wanted")
            return None
        return manifest


def _natural(text: str) -> list[str | int]:
    """A key that sorts layer 10 after layer 2."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d{1,9})", text))]
