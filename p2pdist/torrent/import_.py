"""An image back into the store, from an OCI image layout that any client may have brought.

Nothing in the layout is believed: every manifest and blob is proved against its digest on the way into the store; the
name comes last, so an image is pullable once all of it is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2pdist.errors import ConfigError, DigestMismatch, InvalidManifest, StorageError
from p2pdist.oci import Descriptor, Digest, Index, Manifest, Reference, parse_manifest
from p2pdist.protocol.chunks import chunk_range, chunk_size_for
from p2pdist.protocol.limits import MAX_BLOB, MAX_MANIFEST, SMALL_CONTENT
from p2pdist.store import Staging, Store, StoredBlob
from p2pdist.torrent.layout import REF_NAME, Root, find_layout, open_content, read_content, read_roots

_DEPTH = 4  # indexes within indexes
_MANIFESTS = 256  # in one layout


@dataclass(frozen=True, slots=True)
class Imported:
    """What is in the store now. `stored`: the blobs and manifests that were not there before."""

    images: tuple[tuple[str, Digest], ...]
    stored: tuple[StoredBlob, ...]


async def import_layout(
    store: Store,
    directory: Path,
    *,
    reference: Reference | None = None,
    clock: Callable[[], float] = time.time,
) -> Imported:
    """Take every image of the layout in `directory` (or in its only subdirectory) into the store.

    Args:
        reference: what the image is called, where the layout does not say it; then it must hold one image.

    Raises:
        ConfigError: the layout names no image, and `reference` is not given (or there are several).
        InvalidManifest: an index or manifest that is none.
        StorageError: something is missing or is not what its digest says; DiskFull.
    """
    layout = await asyncio.to_thread(find_layout, directory)
    roots = await asyncio.to_thread(read_roots, layout)
    named = [(root, _name_of(root, reference, len(roots))) for root in roots]
    if not named:
        raise ConfigError(f"{layout} holds no image")
    work = _Import(store, layout)
    images: list[tuple[str, Digest]] = []
    for root, name in named:
        await work.take(root, name)
        if name.tag is not None:
            store.set_tag(str(name.repository), name.tag, str(root.digest), clock())
        images.append((f"{name.repository}{f':{name.tag}' if name.tag else ''}", root.digest))
    return Imported(tuple(images), tuple(work.stored))


def _name_of(root: Root, reference: Reference | None, count: int) -> Reference:
    if reference is not None:
        if count != 1:
            raise ConfigError(f"the layout holds {count} images: they can't all be {reference.repository}")
        if reference.digest is not None and reference.digest != root.digest:
            raise ConfigError(f"the layout holds {root.digest}, not {reference.digest}")
        return reference
    if root.reference is None:
        called = root.annotations.get(REF_NAME)
        hint = f" (only {called!r})" if called else ""
        raise ConfigError(f"the layout does not say what {root.digest} is called{hint}; name it with --name")
    return root.reference


class _Import:
    def __init__(self, store: Store, layout: Path) -> None:
        self.stored: list[StoredBlob] = []
        self._store = store
        self._layout = layout
        self._manifests = 0

    async def take(self, root: Root, name: Reference) -> None:
        """The image under `root`, its manifests noted for the name's repository."""
        found = await self._walk(Descriptor(root.media_type, root.digest, root.size), str(name.repository), _DEPTH)
        if not found:
            raise StorageError(f"nothing of {root.digest} is in {self._layout} but its index")

    async def _walk(self, entry: Descriptor, repository: str, depth: int) -> int:
        """How many images were taken. Children first: a manifest is stored once all that it names is."""
        self._manifests += 1
        if not depth or self._manifests > _MANIFESTS or entry.size > MAX_MANIFEST:
            raise InvalidManifest(f"{entry.digest}: too many manifests, too deep or too large")
        raw = await asyncio.to_thread(read_content, self._layout, entry.digest, entry.size)
        parsed = parse_manifest(raw, entry.media_type, entry.digest.algorithm)
        taken = 0
        if isinstance(parsed, Index):
            for child in parsed.manifests:
                if await self._there(child):  # an index may name platforms that were left out
                    taken += await self._walk(child, repository, depth - 1)
        else:
            await self._blobs(parsed)
            taken = 1
        if taken:
            await self._put(raw, entry.digest)
            self._store.note(entry.digest, repository, parsed.media_type)
        return taken

    async def _there(self, entry: Descriptor) -> bool:
        fd = await asyncio.to_thread(open_content, self._layout, entry.digest)
        if fd is not None:
            os.close(fd)
        return fd is not None

    async def _put(self, data: bytes, digest: Digest) -> None:
        known = self._store.find(digest)
        stored = await self._store.put(data, digest)
        if known is None:
            self.stored.append(stored)

    async def _blobs(self, manifest: Manifest) -> None:
        for blob in (manifest.config, *manifest.layers):
            if self._store.find(blob.digest) is None and not (blob.urls and not await self._there(blob)):
                await self._blob(blob)

    async def _blob(self, blob: Descriptor) -> None:
        if blob.size > MAX_BLOB:
            raise InvalidManifest(f"{blob.digest}: {blob.size} bytes; at most {MAX_BLOB} are taken")
        fd = await asyncio.to_thread(open_content, self._layout, blob.digest)
        if fd is None:
            raise StorageError(f"{blob.digest} is not in {self._layout}")
        try:
            size = os.fstat(fd).st_size
            if size != blob.size:
                raise StorageError(f"{blob.digest}: {blob.size} bytes by its manifest, {size} in {self._layout}")
            if size <= SMALL_CONTENT:
                await self._put(await asyncio.to_thread(_read, fd, 0, size, blob.digest), blob.digest)
            else:
                await self._large(fd, blob) or await self._large(fd, blob)
        except DigestMismatch as error:
            raise StorageError(f"in {self._layout}, {error}") from error
        finally:
            os.close(fd)

    async def _large(self, fd: int, blob: Descriptor) -> bool:
        """Copy, prove and store it; False: what was there of it from an earlier fetch is wrong, and gone now."""
        staging = await self._store.stage(blob.digest, blob.size, chunk_size_for(blob.size, blob.size))
        resumed = bool(staging.have)
        try:
            for index in range(staging.count):
                if not staging.have >> index & 1:
                    await asyncio.to_thread(_copy_chunk, fd, staging, index)
            self.stored.append(await staging.commit())
        except DigestMismatch:
            await staging.abandon()
            if not resumed:
                raise
            return False
        finally:
            await staging.close()
        return True


def _copy_chunk(fd: int, staging: Staging, index: int) -> None:
    start, end = chunk_range(index, staging.size, staging.chunk_size)
    data = _read(fd, start, end - start, staging.digest)
    staging.write(start, data)
    staging.prove(index, hashlib.sha256(data).digest(), b"")  # the whole digest is proved by `commit`


def _read(fd: int, start: int, length: int, digest: Digest) -> bytes:
    try:
        data = os.pread(fd, length, start)
    except OSError as error:
        raise StorageError(f"{digest} can't be read: {error.strerror}") from error
    if len(data) != length:
        raise StorageError(f"{digest} became shorter while it was read")
    return data
