"""The demo's image is one that a daemon could really pull and unpack."""

from __future__ import annotations

import hashlib
import json
import tarfile

import pytest

from p2pdist.cli.demo.image import MIN_LAYER, make_image
from p2pdist.oci import Manifest, parse_manifest


@pytest.mark.parametrize(("size", "layers"), [(MIN_LAYER, 1), (MIN_LAYER * 3, 3), (3 * 1024 * 1024 + 777, 4)])
def test_every_blob_has_the_digest_and_size_that_the_manifest_says(tmp_path, size, layers):
    image = make_image(tmp_path, size, layers)
    manifest = parse_manifest(image.manifest, None)
    assert isinstance(manifest, Manifest)
    assert len(manifest.layers) == layers
    for descriptor in (manifest.config, *manifest.layers):
        data = (tmp_path / descriptor.digest.hex).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (descriptor.size, descriptor.digest.hex)


def test_the_layers_add_up_to_about_the_size_that_was_asked_for(tmp_path):
    image = make_image(tmp_path, 1_000_000, 7)
    assert 1_000_000 - 7 * 512 <= sum(layer.size for layer in image.layers) <= 1_000_000


def test_layers_are_tar_files_whose_uncompressed_digests_the_configuration_lists(tmp_path):
    image = make_image(tmp_path, 64 * 1024, 2)
    config = json.loads((tmp_path / image.config.digest.hex).read_bytes())
    assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in image.layers]
    for layer in image.layers:
        with tarfile.open(tmp_path / layer.digest.hex) as tar:
            (member,) = tar.getmembers()
            assert member.isfile() and len(tar.extractfile(member).read()) == member.size


def test_two_images_share_no_layer(tmp_path):
    one, two = make_image(tmp_path / "1", 8192, 2), make_image(tmp_path / "2", 8192, 2)
    assert not set(one.digests) & set(two.digests)


def test_making_one_stops_when_nobody_wants_it_any_more(tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(InterruptedError):
        make_image(tmp_path, 1 << 40, 1, lambda: next(asked))
