"""Images made in memory: deterministic layers, configs, manifests and indexes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pdist.oci import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that don't compress and are the same for the same seed."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Image:
    """A manifest and its blobs; `platform` is what an index says of it."""

    raw: bytes
    media_type: str
    blobs: Mapping[Digest, bytes]
    config: Digest
    layers: tuple[Digest, ...]
    platform: Mapping[str, str]

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """The descriptor of `data`, ready for JSON."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


def make_image(
    layers: Sequence[bytes],
    *,
    docker: bool = False,
    architecture: str = "amd64",
    annotations: Mapping[str, str] | None = None,
    subject: Mapping[str, Any] | None = None,
    artifact_type: str | None = None,
) -> Image:
    """An image whose layers are these bytes (as they are: nothing unpacks them unless the test made them a tar)."""
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
        }
    ).encode()
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config, DOCKER_CONFIG if docker else OCI_CONFIG),
        "layers": [descriptor(layer, DOCKER_LAYER if docker else OCI_LAYER) for layer in layers],
    }
    if annotations:
        body["annotations"] = dict(annotations)
    if subject:
        body["subject"] = dict(subject)
    if artifact_type:
        body["artifactType"] = artifact_type
    blobs = {Digest.of(data): data for data in (config, *layers)}
    return Image(
        json.dumps(body, indent=1).encode(),
        media_type,
        blobs,
        Digest.of(config),
        tuple(Digest.of(layer) for layer in layers),
        {"architecture": architecture, "os": "linux"},
    )


def make_index(images: Sequence[Image], *, docker: bool = False) -> bytes:
    """The index (Docker: manifest list) of these images."""
    manifests = [descriptor(image.raw, image.media_type, platform=dict(image.platform)) for image in images]
    media_type = DOCKER_LIST if docker else OCI_INDEX
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}, indent=1).encode()
