"""The images of the laboratory are what a daemon would accept, and the same every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pytest
from lab.images import Content, image, index

MIB = 1 << 20


def read(content: Content) -> bytes:
    return b"".join(content.pieces())


@pytest.mark.parametrize("compression", ["tar", "gzip"])
@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_layers_are_archives_whose_digests_are_what_manifest_and_config_say(compression: str, flavour: str) -> None:
    made = image("x", [2048, MIB + 512], compression=compression, flavour=flavour)
    manifest, config = json.loads(made.manifest), json.loads(read(made.config))
    assert made.digest == "sha256:" + hashlib.sha256(made.manifest).hexdigest()
    for layer, said, diff_id in zip(made.layers, manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        raw = read(layer)
        assert said == {"mediaType": layer.media_type, "digest": layer.digest, "size": len(raw)}
        assert layer.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
        archive = gzip.decompress(raw) if compression == "gzip" else raw
        assert diff_id == "sha256:" + hashlib.sha256(archive).hexdigest()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            assert [member.isfile() for member in tar.getmembers()] == [True]


def test_plain_layers_have_exactly_the_size_asked_for() -> None:
    assert [layer.size for layer in image("x", [2048, 3 * MIB]).layers] == [2048, 3 * MIB]


def test_the_seed_decides_every_byte() -> None:
    assert image("a", [MIB]).digest == image("a", [MIB]).digest != image("b", [MIB]).digest


def test_an_index_names_each_platform_once() -> None:
    made = index([image("x", [MIB], architecture=architecture) for architecture in ("amd64", "arm64")])
    platforms = [one["platform"]["architecture"] for one in json.loads(made.manifest)["manifests"]]
    assert platforms == ["amd64", "arm64"]
    assert len({blob.digest for blob in made.blobs}) == 4
