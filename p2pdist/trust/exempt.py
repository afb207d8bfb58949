"""Signature objects that have been let through by their shape, and so their blobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pdist.oci import Digest, Index, Manifest, Repository
from p2pdist.trust import limits
from p2pdist.trust.library import Library
from p2pdist.trust.shapes import is_no_archive, signature_object

_KEPT = 4096


class ExemptObjects:
    """Remembers for `seconds` what it let through. `clock`: seconds since 1970."""

    def __init__(self, library: Library, clock: Callable[[], float], seconds: float) -> None:
        self._library = library
        self._clock = clock
        self._seconds = seconds
        self._blobs: dict[tuple[Repository, Digest], float] = {}
        self._manifests: dict[tuple[Repository, Digest], float] = {}

    def has_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether it belongs to an object that was let through."""
        return self._blobs.get((repository, digest), 0.0) > self._clock()

    async def admit(
        self, repository: Repository, target: str, manifest: Manifest | Index, authorization: str | None
    ) -> bool:
        """Whether `manifest` is a signature object, as far as need be by what its layers hold."""
        exempt = signature_object(target, manifest)
        if exempt is None:
            return False
        for layer in exempt.read_first:
            if self.has_blob(repository, layer.digest):
                continue
            try:
                async with asyncio.timeout(limits.SECONDS):
                    data = await self._library.blob(repository, layer.digest, layer.size, authorization)
            except TimeoutError:
                return False
            if data is None or not is_no_archive(layer, data):
                return False
        end = self._clock() + self._seconds
        for table, digests in ((self._manifests, {manifest.digest}), (self._blobs, exempt.blobs)):
            while len(table) > _KEPT:  # the oldest; it is judged by its shape again when it is asked for
                del table[next(iter(table))]
            table.update({(repository, digest): end for digest in digests})
        return True

    def digests(self, repository: Repository) -> set[Digest]:
        """Manifests and blobs of the objects of a repository that were let through."""
        both = [*self._manifests.items(), *self._blobs.items()]
        return {digest for (of, digest), end in both if of == repository and end > self._clock()}
