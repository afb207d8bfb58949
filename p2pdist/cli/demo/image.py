"""The image that the demo rolls out: real layers (tar files of random bytes, so nothing compresses or repeats)."""

from __future__ import annotations

import json
import os
import platform
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2pdist.oci import OCI_MANIFEST, Digest

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MIN_LAYER = 2048  # tar: one header block, one of data, two of zeros

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1024 * 1024
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob as a manifest describes it; its bytes lie in the image's directory."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class DemoImage:
    """An image in `directory`, each blob in a file named by its hex digest, and the manifest's bytes."""

    directory: Path
    manifest: bytes
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def manifest_digest(self) -> Digest:
        return Digest.of(self.manifest)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All digests whoever pulls the image has to prove."""
        return (self.manifest_digest, self.config.digest, *(layer.digest for layer in self.layers))

    @property
    def size(self) -> int:
        """Bytes of one whole copy: manifest, config and layers."""
        return len(self.manifest) + self.config.size + sum(layer.size for layer in self.layers)


def make_image(directory: Path, size: int, layers: int, cancelled: Callable[[], bool] = lambda: False) -> DemoImage:
    """An image of about `size` bytes in `layers` layers, written into `directory`.

    Raises InterruptedError soon after `cancelled` says so.
    """
    directory.mkdir(parents=True, exist_ok=True)
    made = tuple(_make_layer(directory, index, max(MIN_LAYER, size // layers), cancelled) for index in range(layers))
    config_bytes = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in made]},
            "history": [{"created_by": "p2pdist demo"} for _ in made],
        }
    ).encode()
    config = Blob(CONFIG_TYPE, Digest.of(config_bytes), len(config_bytes))
    (directory / config.digest.hex).write_bytes(config_bytes)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(config),
            "layers": [_descriptor(layer) for layer in made],
        }
    ).encode()
    return DemoImage(directory, manifest, config, made)


def _descriptor(blob: Blob) -> dict[str, object]:
    return {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}


def _make_layer(directory: Path, index: int, size: int, cancelled: Callable[[], bool]) -> Blob:
    """A tar file with one file of random bytes; `size` is rounded down to whole blocks."""
    data_size = (size // _BLOCK - 3) * _BLOCK
    member = tarfile.TarInfo(f"layer-{index + 1}.bin")
    member.size = data_size
    staging = directory / f"layer-{index}"
    digest = Digest.of(b"").hasher()
    with staging.open("wb") as out:
        left = data_size
        piece = member.tobuf(tarfile.GNU_FORMAT)
        while piece:
            if cancelled():
                raise InterruptedError("no image is wanted any more")
            digest.update(piece)
            out.write(piece)
            piece = os.urandom(min(left, _PIECE))
            left -= len(piece)
        end = bytes(2 * _BLOCK)
        digest.update(end)
        out.write(end)
        total = out.tell()
    named = Digest("sha256", digest.hexdigest())
    staging.rename(directory / named.hex)
    return Blob(LAYER_TYPE, named, total)
