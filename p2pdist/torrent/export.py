"""An image out of the cluster, into the BitTorrent world: an OCI image layout, its .torrent and its magnet link.

Every byte is proved against its digest on the way, whatever the source is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p2pdist.errors import ConfigError, InvalidManifest, StorageError, UpstreamInvalid
from p2pdist.oci import Descriptor, Digest, Index, Manifest, Platform, Reference, Repository, is_index, parse_manifest
from p2pdist.torrent.layout import NewLayout, new_layout
from p2pdist.torrent.multifile import Torrent, make_torrent

_DEPTH = 4  # indexes within indexes


class ImageSource(Protocol):
    """Where an image comes from: the agent's mirror, or its store."""

    async def manifest(self, repository: Repository, target: str) -> tuple[bytes, str]:
        """The manifest's bytes and media type."""

    def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[bytes]:
        """The blob's bytes in order."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was made. `file`: the .torrent."""

    image: Digest
    directory: Path
    file: Path
    torrent: Torrent


async def export_image(
    source: ImageSource,
    reference: Reference,
    directory: Path,
    *,
    platforms: Sequence[Platform] | None = None,
    piece_size: int | None = None,
    trackers: Sequence[str] = (),
) -> Exported:
    """Write the image as `directory` and its torrent beside it.

    Args:
        platforms: of an index, take the images for these; None: all that it names.
        piece_size: bytes; None: what suits the size.
        trackers: announce URLs.

    Raises:
        ConfigError: a platform that the image does not have, or an impossible piece size.
        InvalidManifest, UpstreamError: from the source.
        StorageError, DiskFull: the directory is there, or can't be written.
    """
    raw, media_type = await source.manifest(reference.repository, reference.target)
    algorithm = reference.digest.algorithm if reference.digest is not None else "sha256"
    root = parse_manifest(raw, media_type, algorithm)
    if reference.digest is not None and root.digest != reference.digest:
        raise UpstreamInvalid(f"wanted {reference.digest}, got {root.digest}")
    with new_layout(directory) as layout:
        await _Export(source, reference.repository, layout, platforms).walk(root, _DEPTH)
        layout.finish(root.digest, len(raw), root.media_type, reference)
    torrent = await asyncio.to_thread(make_torrent, directory, piece_size, trackers)
    file = directory.with_name(directory.name + ".torrent")
    try:
        await asyncio.to_thread(file.write_bytes, torrent.data)
    except OSError as error:
        raise StorageError(f"{file} can't be written: {error.strerror}") from error
    return Exported(root.digest, directory, file, torrent)


class _Export:
    def __init__(
        self,
        source: ImageSource,
        repository: Repository,
        layout: NewLayout,
        platforms: Sequence[Platform] | None,
    ) -> None:
        self._source = source
        self._repository = repository
        self._layout = layout
        self._platforms = platforms

    async def walk(self, parsed: Manifest | Index, depth: int) -> None:
        """The manifest and everything under it."""
        self._layout.put(parsed.raw, parsed.digest)
        if isinstance(parsed, Manifest):
            for blob in (parsed.config, *parsed.layers):
                if not blob.urls and not self._layout.has(blob.digest):
                    await self._copy(blob)
            return
        if not depth:
            raise InvalidManifest(f"{parsed.digest}: indexes within indexes, too deep")
        for entry in self._chosen(parsed):
            if not self._layout.has(entry.digest):
                await self.walk(await self._manifest(entry), depth - 1)

    def _chosen(self, index: Index) -> list[Descriptor]:
        if self._platforms is None:
            return list(index.manifests)
        chosen = [
            entry
            for entry in index.manifests
            if is_index(entry.media_type) or any(_fits(entry.platform, wanted) for wanted in self._platforms)
        ]
        if not chosen:
            there = ", ".join(sorted({_shown(entry.platform) for entry in index.manifests if entry.platform}))
            raise ConfigError(f"the image has nothing for that platform; it has {there or 'no platforms'}")
        return chosen

    async def _manifest(self, entry: Descriptor) -> Manifest | Index:
        raw, _ = await self._source.manifest(self._repository, str(entry.digest))
        parsed = parse_manifest(raw, entry.media_type, entry.digest.algorithm)
        if parsed.digest != entry.digest or len(raw) != entry.size:
            raise UpstreamInvalid(f"wanted {entry.digest} ({entry.size} bytes), got {parsed.digest} ({len(raw)} bytes)")
        return parsed

    async def _copy(self, blob: Descriptor) -> None:
        written = 0
        with self._layout.blob(blob.digest) as writer:
            async for data in self._source.blob(self._repository, blob.digest):
                written += len(data)
                if written > blob.size:
                    raise UpstreamInvalid(f"{blob.digest} is longer than the {blob.size} bytes its manifest says")
                await asyncio.to_thread(writer.write, data)
            await asyncio.to_thread(writer.proved, blob.size)


def _fits(platform: Platform | None, wanted: Platform) -> bool:
    if platform is None or (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        return False
    return not wanted.variant or platform.variant == wanted.variant


def _shown(platform: Platform | None) -> str:
    if platform is None:
        return ""
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)
