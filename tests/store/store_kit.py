"""Content and shortcuts that the tests of the store share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pdist.oci import Digest
from p2pdist.store import Staging, Store, StoredBlob

CHUNK = 64 * 1024


@dataclass
class Clock:
    """Seconds that pass only when told to."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def chunk(data: bytes, index: int, chunk_size: int = CHUNK) -> bytes:
    return data[index * chunk_size : (index + 1) * chunk_size]


def fill(staging: Staging, data: bytes, indices: Iterable[int] | None = None) -> None:
    """Writes and proves chunks, all of them unless told."""
    for index in range(staging.count) if indices is None else indices:
        piece = chunk(data, index, staging.chunk_size)
        staging.write(index * staging.chunk_size, piece)
        staging.prove(index, sha256(piece), b"evidence %d" % index)


async def add(store: Store, data: bytes, chunk_size: int = CHUNK) -> StoredBlob:
    """A blob by way of a staging."""
    async with await store.stage(Digest.of(data), len(data), chunk_size) as staging:
        fill(staging, data)
        return await staging.commit()


async def read(store: Store, digest: Digest) -> bytes | None:
    """All bytes that the store gives out for `digest`."""
    file = await store.open_blob(digest)
    if file is None:
        return None
    with file:
        return file.pread(0, file.size)


def path_of(directory: Path, digest: Digest) -> Path:
    """Where the blob's file is, by the OCI image layout."""
    return directory / "blobs" / digest.algorithm / digest.hex


def names(directory: Path) -> set[str]:
    """The files in a part of the data directory."""
    return {path.name for path in directory.iterdir()}
