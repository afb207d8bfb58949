"""Real images out of a seed: valid layers, config with diff_ids, manifest; single or multi-arch; OCI or Docker types.

The same seed and sizes give the same bytes everywhere, so a digest in a failure message can be found again. Content is
made in pieces when it is read and never held: a layer of 2 GiB costs no memory.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MIB = 1 << 20
Compression = Literal["tar", "gzip"]
Flavour = Literal["oci", "docker"]

_TYPES: dict[tuple[Flavour, str], str] = {
    ("oci", "manifest"): "application/vnd.oci.image.manifest.v1+json",
    ("oci", "index"): "application/vnd.oci.image.index.v1+json",
    ("oci", "config"): "application/vnd.oci.image.config.v1+json",
    ("oci", "tar"): "application/vnd.oci.image.layer.v1.tar",
    ("oci", "gzip"): "application/vnd.oci.image.layer.v1.tar+gzip",
    ("docker", "manifest"): "application/vnd.docker.distribution.manifest.v2+json",
    ("docker", "index"): "application/vnd.docker.distribution.manifest.list.v2+json",
    ("docker", "config"): "application/vnd.docker.container.image.v1+json",
    ("docker", "tar"): "application/vnd.docker.image.rootfs.diff.tar",
    ("docker", "gzip"): "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


@dataclass(frozen=True)
class Content:
    """One blob: what a descriptor says of it, and its bytes in pieces whenever they are asked for."""

    media_type: str
    digest: str
    size: int
    pieces: Callable[[], Iterator[bytes]]

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """An image of one platform. `diff_ids` are the digests of the uncompressed layers."""

    manifest: bytes
    media_type: str
    digest: str
    config: Content
    layers: tuple[Content, ...]
    diff_ids: tuple[str, ...]
    architecture: str

    @property
    def size(self) -> int:
        """Bytes of all layers: what a rollout has to move to each node."""
        return sum(layer.size for layer in self.layers)

    @property
    def blobs(self) -> tuple[Content, ...]:
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Index:
    """A multi-arch image."""

    manifest: bytes
    media_type: str
    digest: str
    images: tuple[Image, ...]

    @property
    def blobs(self) -> tuple[Content, ...]:
        return tuple(blob for image in self.images for blob in image.blobs)


def image(
    seed: str,
    layer_sizes: Sequence[int],
    *,
    compression: Compression = "tar",
    flavour: Flavour = "oci",
    architecture: str = "amd64",
) -> Image:
    """An image whose layers are tar archives of one random file each. With "tar" the sizes (bytes, multiples of 512)
    are exact; with "gzip" the compressed layer is a little larger, as random bytes are.
    """
    layers, diff_ids = [], []
    for number, size in enumerate(layer_sizes):
        archive = partial(_archive, f"{seed}/{architecture}/{number}", f"data/{number}.bin", size)
        diff_ids.append(_digest(archive()))
        pieces = archive if compression == "tar" else partial(_gzip, archive)
        layers.append(_content(_TYPES[flavour, compression], pieces))
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/data"], "Labels": {"seed": seed}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": f"layer {i}"} for i in range(len(layers))],
    }
    raw_config = json.dumps(config).encode()
    config_content = _content(_TYPES[flavour, "config"], lambda: iter([raw_config]))
    media_type = _TYPES[flavour, "manifest"]
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config_content.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    raw = json.dumps(manifest, indent=3).encode()
    return Image(raw, media_type, _digest([raw]), config_content, tuple(layers), tuple(diff_ids), architecture)


def index(images: Sequence[Image], *, flavour: Flavour = "oci") -> Index:
    manifests = [
        {
            "mediaType": one.media_type,
            "digest": one.digest,
            "size": len(one.manifest),
            "platform": {"architecture": one.architecture, "os": "linux"},
        }
        for one in images
    ]
    media_type = _TYPES[flavour, "index"]
    raw = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}, indent=3).encode()
    return Index(raw, media_type, _digest([raw]), tuple(images))


def random_pieces(seed: str, size: int) -> Iterator[bytes]:
    """`size` bytes that nothing compresses (AES-CTR over zeros, a gigabyte in a fraction of a second)."""
    key = hashlib.sha256(seed.encode()).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(MIB)
    for start in range(0, size, MIB):
        yield stream.update(zeros if size - start >= MIB else bytes(size - start))


def _archive(seed: str, name: str, size: int) -> Iterator[bytes]:
    """A tar archive of exactly `size` bytes: one header block, the file, two zero blocks."""
    if size % 512 or size < 2048:
        raise ValueError(f"a tar archive has a multiple of 512 bytes and at least 2048, not {size}")
    entry = tarfile.TarInfo(name)
    entry.size = size - 512 - 1024
    entry.mode = 0o644
    yield entry.tobuf(tarfile.USTAR_FORMAT)
    yield from random_pieces(seed, entry.size)
    yield bytes(1024)


def _gzip(pieces: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
    # Level 0 (stored): the bytes are random, and so every zlib makes the same archive.
    packer = zlib.compressobj(0, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    for piece in pieces():
        yield packer.compress(piece)
    yield packer.flush()


def _content(media_type: str, pieces: Callable[[], Iterator[bytes]]) -> Content:
    hasher = hashlib.sha256()
    size = 0
    for piece in pieces():
        hasher.update(piece)
        size += len(piece)
    return Content(media_type, f"sha256:{hasher.hexdigest()}", size, pieces)


def _digest(pieces: Sequence[bytes] | Iterator[bytes]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"
