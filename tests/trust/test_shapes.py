"""Signature objects by shape: what may pass a policy unsigned, and that none of it can be run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trust_kit import BUNDLE_TYPE, NOTATION_TYPE, SIMPLE_TYPE, descriptor, dumps, image, index, referrer

from p2pdist.oci import OCI_INDEX, OCI_MANIFEST, Descriptor, Digest, parse_manifest
from p2pdist.trust import limits
from p2pdist.trust.shapes import is_no_archive, signature_object

IMAGE = image()
HEX = "a" * 64
TAR = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"


def exempt(target: str, **document: Any) -> bool:
    raw = dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **document})
    return signature_object(target, parse_manifest(raw, None)) is not None


def made(
    layer: str = SIMPLE_TYPE, size: int = 100, config: str = CONFIG, config_data: bytes = b"{...}", count: int = 1
) -> dict[str, Any]:
    return {
        "config": descriptor(config, config_data),
        "layers": [{**descriptor(layer, b"%d" % number), "size": size} for number in range(count)],
    }


@pytest.mark.parametrize("target", [f"sha256-{HEX}.sig", f"sha256-{HEX}.att", f"sha256-{HEX}.sbom", f"sha256:{HEX}"])
def test_small_signatures_pass_under_their_tags_and_by_digest(target: str) -> None:
    assert exempt(target, **made())
    assert exempt(target, **made(BUNDLE_TYPE, config=EMPTY, config_data=b"{}"))
    assert exempt(target, **made("application/vnd.dsse.envelope.v1+json"))


@pytest.mark.parametrize("target", ["1.0", "latest", f"sha256-{HEX}.img", f"sha256-{HEX[:-1]}.sig", f"sha256-{HEX}"])
def test_under_another_tag_it_is_judged_like_an_image(target: str) -> None:
    assert not exempt(target, **made())


@pytest.mark.parametrize(
    "document",
    [
        made(TAR),
        made(TAR, config=EMPTY, config_data=b"{}"),
        made("application/octet-stream", config=EMPTY, config_data=b"{}"),
        made(size=limits.PAYLOAD + 1),
        made(BUNDLE_TYPE, size=limits.ENVELOPE + 1, config=EMPTY, config_data=b"{}"),
        made(count=limits.SIGNATURES + 1),
        made(count=0),
        made("text/spdx", size=limits.TOTAL // 2 + 1, count=2),
        made(config="application/vnd.unknown.config.v1+json"),
        made(config=CONFIG, config_data=b"x" * (limits.PAYLOAD + 1)),
    ],
    ids=range(10),
)
def test_what_has_another_shape_is_judged_like_an_image(document: dict[str, Any]) -> None:
    assert not exempt(f"sha256-{HEX}.sig", **document)
    subject = descriptor(OCI_MANIFEST, IMAGE.raw)
    assert not exempt("1.0", subject=subject, artifactType=NOTATION_TYPE, **document)


def test_an_empty_config_that_only_says_so_is_not_believed() -> None:
    # containerd looks at no config type: a real one under the empty type, with layers, could run.
    pretended = made(SIMPLE_TYPE, config=EMPTY, config_data=b'{"rootfs": {}}')
    assert not exempt(f"sha256-{HEX}.sig", **pretended)


def test_what_could_be_taken_for_an_image_is_read_before_it_passes() -> None:
    raw = dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **made()})
    known = signature_object(f"sha256-{HEX}.sig", parse_manifest(raw, None))
    assert known is not None
    assert len(known.read_first) == 1
    attached = signature_object("1.0", parse_manifest(referrer(IMAGE, b"{}")[0], None))
    assert attached is not None
    assert attached.read_first == ()


@pytest.mark.parametrize(
    ("type_", "data", "passes"),
    [
        (SIMPLE_TYPE, b'{"a": 1}', True),
        (SIMPLE_TYPE, b"\x1f\x8b\x08", False),
        (SIMPLE_TYPE, b"BZh9", False),
        (SIMPLE_TYPE, b"\xfd7zXZ", False),
        (SIMPLE_TYPE, b"(\xb5/\xfd", False),
        (SIMPLE_TYPE, b"{" + b"\0" * 600, False),
        (SIMPLE_TYPE, b"", False),
        ("text/spdx", b"SPDXVersion: SPDX-2.3", True),
        ("text/spdx", b"BZh9", False),
        ("application/vnd.cyclonedx+xml", b"<bom/>", True),
        ("application/vnd.cyclonedx+xml", b"<bom/>\0", False),
        ("application/cose", b"\xd2\x84", True),
        ("application/cose", b"\x1f\x8b", False),
        (TAR, b"{}", False),
    ],
)
def test_an_archive_is_told_from_a_signature_by_its_content(type_: str, data: bytes, passes: bool) -> None:
    assert is_no_archive(Descriptor(type_, Digest.of(data), len(data)), data) is passes


def test_a_list_of_signatures_passes_alone() -> None:
    named = signature_object(f"sha256-{HEX}", index(IMAGE))
    assert named is not None
    assert named.blobs == frozenset(), "nothing that it lists passes with it"
    listing = json.loads(index(IMAGE).raw)
    assert signature_object(f"sha256:{HEX}", parse_manifest(dumps(listing), OCI_INDEX)) is None
    listing["manifests"][0]["artifactType"] = NOTATION_TYPE
    assert signature_object(f"sha256:{HEX}", parse_manifest(dumps(listing), OCI_INDEX)) is not None
    assert signature_object("1.0", parse_manifest(dumps(listing), OCI_INDEX)) is None
    listing["manifests"] = []
    assert signature_object(f"sha256:{HEX}", parse_manifest(dumps(listing), OCI_INDEX)) is None
