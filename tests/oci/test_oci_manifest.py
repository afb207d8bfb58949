"""What parse_manifest takes, and each rule that it refuses by."""

import json
from typing import Any

import pytest
from support.images import descriptor, make_image, make_index

from p2pdist.errors import InvalidManifest
from p2pdist.oci import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Digest,
    Index,
    Manifest,
    Platform,
    parse_manifest,
)
from p2pdist.oci.boundedjson import MAX_BYTES, MAX_DEPTH
from p2pdist.oci.manifest import MAX_ANNOTATIONS, MAX_DESCRIPTORS, MAX_TEXT

LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + "1" * 64, "size": 7}
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:" + "2" * 64, "size": 5}


def body(**changes: Any) -> bytes:
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]} | changes
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


def index(**changes: Any) -> bytes:
    return body(**{"config": ..., "layers": ..., "mediaType": OCI_INDEX, "manifests": [LAYER]} | changes)


def refused(raw: bytes, media_type: str | None = None) -> str:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(raw, media_type)
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(("docker", "media_type"), [(False, OCI_MANIFEST), (True, DOCKER_MANIFEST)])
def test_an_image_manifest_is_read_and_its_bytes_kept(docker: bool, media_type: str) -> None:
    image = make_image([b"one", b"two"], docker=docker, annotations={"a": "b"})
    manifest = parse_manifest(image.raw, media_type)
    assert isinstance(manifest, Manifest)
    assert manifest.raw is image.raw and manifest.digest == image.digest and manifest.media_type == media_type
    assert manifest.config.digest == image.config
    assert [layer.digest for layer in manifest.layers] == list(image.layers)
    assert [layer.size for layer in manifest.layers] == [3, 3]
    assert dict(manifest.annotations) == {"a": "b"} and manifest.subject is None
    hash(manifest)


@pytest.mark.parametrize(("docker", "media_type"), [(False, OCI_INDEX), (True, DOCKER_LIST)])
def test_an_index_is_read_with_its_platforms(docker: bool, media_type: str) -> None:
    images = [make_image([b"x"], architecture=a, docker=docker) for a in ("amd64", "arm64")]
    found = parse_manifest(make_index(images, docker=docker), None)
    assert isinstance(found, Index) and found.media_type == media_type
    assert [one.digest for one in found.manifests] == [one.digest for one in images]
    assert [one.platform for one in found.manifests] == [Platform("linux", "amd64"), Platform("linux", "arm64")]


def test_an_artifact_keeps_subject_artifact_type_and_annotations() -> None:
    image = make_image([b"sig"], subject=descriptor(b"{}", OCI_MANIFEST), artifact_type="application/vnd.x.sig.v1")
    manifest = parse_manifest(image.raw, OCI_MANIFEST)
    assert manifest.subject is not None and manifest.subject.digest == Digest.of(b"{}")
    assert manifest.artifact_type == "application/vnd.x.sig.v1"


def test_unknown_fields_and_foreign_media_types_survive() -> None:
    foreign = LAYER | {
        "mediaType": "application/vnd.foreign.weights+zstd",
        "urls": ["https://x.invalid/1"],
        "data": "e30=",
    }
    raw = body(layers=[foreign], somethingNew={"deep": [1.5, None, True]})
    manifest = parse_manifest(raw, "application/octet-stream")
    assert manifest.raw == raw
    assert manifest.layers[0].media_type == "application/vnd.foreign.weights+zstd"
    assert manifest.layers[0].urls == ("https://x.invalid/1",)


def test_the_whole_platform_is_read() -> None:
    platform = {
        "os": "windows",
        "architecture": "arm",
        "variant": "v7",
        "os.version": "10.0",
        "os.features": ["win32k"],
    }
    found = parse_manifest(index(manifests=[LAYER | {"platform": platform}]), None)
    assert found.manifests[0].platform == Platform("windows", "arm", "v7", "10.0", ("win32k",))


@pytest.mark.parametrize(
    "said", [None, "", "application/json", "text/plain; charset=utf-8", "application/octet-stream"]
)
def test_without_a_telling_content_type_the_body_decides(said: str | None) -> None:
    assert parse_manifest(body(), said).media_type == OCI_MANIFEST
    assert parse_manifest(body(mediaType=DOCKER_MANIFEST), said).media_type == DOCKER_MANIFEST
    assert parse_manifest(body(mediaType=...), said).media_type == OCI_MANIFEST
    assert parse_manifest(index(), said).media_type == OCI_INDEX


def test_content_type_is_read_without_parameters_and_case() -> None:
    assert parse_manifest(body(), OCI_MANIFEST.upper() + "; charset=utf-8").media_type == OCI_MANIFEST


def test_the_digest_has_the_algorithm_it_was_asked_by() -> None:
    assert parse_manifest(body(), None, "sha512").digest == Digest.of(body(), "sha512")
    with pytest.raises(InvalidManifest, match="'md5' is unknown"):
        parse_manifest(body(), None, "md5")


def test_no_layers_and_null_lists_are_what_go_writes() -> None:
    assert parse_manifest(body(layers=None, annotations=None, subject=None), None).layers == ()
    assert parse_manifest(index(), None).annotations == {}


# --- attacks and accidents ---


@pytest.mark.parametrize(
    "raw", [b"", b"<html>502</html>", b"{", b"[]", b"null", b'"x"', b"1", body() + b"x", body()[:-1]]
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    refused(raw)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_than_utf8_is_refused(encoding: str) -> None:
    refused(body().decode().encode(encoding))


def test_invalid_utf8_and_lone_surrogates_are_refused() -> None:
    refused(body(annotations={"a": "xyz"}).replace(b"xyz", b"\xff\xfe"))
    refused(body(annotations={"a": "\ud800"}))


def test_not_a_number_is_refused() -> None:
    refused(body(layers=[LAYER | {"size": float("nan")}]))
    refused(body(x=float("inf")))


@pytest.mark.parametrize("size", [-1, 1.0, 1e3, True, False, "7", None, [], 2**63, 10**400])
def test_a_size_that_is_no_whole_number_of_bytes_is_refused(size: object) -> None:
    assert "size" in refused(body(layers=[LAYER | {"size": size}]))
    refused(body(config=CONFIG | {"size": size}))
    refused(index(manifests=[LAYER | {"size": size}]))


def test_an_integer_of_a_million_digits_is_refused() -> None:
    refused(body().replace(b'"size": 7', b'"size": ' + b"7" * 1_000_000))


@pytest.mark.parametrize("digest", ["md5:" + "a" * 32, "sha256:xyz", "sha256:../../x", "", None, 7, {}])
def test_a_descriptor_with_a_digest_of_an_unknown_algorithm_or_none_is_refused(digest: object) -> None:
    assert "layers[0].digest" in refused(body(layers=[LAYER | {"digest": digest}]))


@pytest.mark.parametrize("media_type", [None, "", 7, "a\nb", "ä", " x", "x" * 256, "a\x00b"])
def test_a_descriptor_whose_media_type_could_split_a_header_is_refused(media_type: object) -> None:
    assert "mediaType" in refused(body(layers=[LAYER | {"mediaType": media_type}]))


@pytest.mark.parametrize("version", [None, 3, "2", 2.0, True, ...])
def test_another_schema_version_is_refused(version: object) -> None:
    assert "schemaVersion" in refused(body(schemaVersion=version))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"schemaVersion":1,"fsLayers":[]}', None),
        (b"not even json", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (body(mediaType="application/vnd.docker.distribution.manifest.v1+json"), None),
    ],
)
def test_schema_1_is_refused_by_name(raw: bytes, said: str | None) -> None:
    assert "schema 1" in refused(raw, said)


def test_a_body_that_is_index_and_manifest_at_once_is_refused() -> None:
    # CVE-2021-41190: each client would read another image from the same signed digest.
    assert "both" in refused(body(manifests=[LAYER]))
    assert "neither" in refused(body(config=..., layers=...))


def test_a_body_of_the_other_kind_than_its_media_type_is_refused() -> None:
    refused(body(), OCI_INDEX)
    refused(body(), DOCKER_LIST)
    refused(index(), OCI_MANIFEST)
    refused(body(mediaType=OCI_INDEX), OCI_MANIFEST)
    refused(body(mediaType=DOCKER_LIST), None)


@pytest.mark.parametrize("twin", ["Layers", "LAYERS", "layerſ", "Config", "mediatype", "SchemaVersion"])  # noqa: RUF001
def test_a_field_in_another_case_that_go_would_read_is_refused(twin: str) -> None:
    assert "is meant" in refused(body(**{twin: []}))


def test_a_field_in_another_case_inside_a_descriptor_is_refused_but_annotations_are_free() -> None:
    assert "'digest' is meant" in refused(body(layers=[LAYER | {"Digest": "sha256:" + "3" * 64}]))
    parse_manifest(body(annotations={"Size": "1", "size": "2", "Digest": "x"}), None)


def test_a_key_that_is_there_twice_is_refused() -> None:
    assert "twice" in refused(body()[:-1] + b', "layers": []}')
    assert "twice" in refused(body(x={"y": 1}).replace(b'"y": 1', b'"y": 1, "y": 2'))


def test_an_index_without_config_and_a_manifest_without_config_differ() -> None:
    assert "no config" in refused(body(config=...))
    assert "no config" in refused(body(config=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": {}},
        {"layers": "x"},
        {"layers": [1]},
        {"config": []},
        {"subject": "x"},
        {"annotations": []},
        {"annotations": {"a": 1}},
        {"annotations": {"a": None}},
        {"artifactType": 1},
    ],
)
def test_fields_of_the_wrong_type_are_refused(wrong: dict[str, object]) -> None:
    refused(body(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"platform": []},
        {"platform": {"os": 1}},
        {"platform": {"os.features": "x"}},
        {"platform": {"OS": "x"}},
        {"urls": "x"},
        {"urls": [1]},
        {"urls": ["x"] * 65},
        {"annotations": 1},
        {"artifactType": "\n"},
    ],
)
def test_descriptor_fields_of_the_wrong_type_are_refused(wrong: dict[str, object]) -> None:
    refused(index(manifests=[LAYER | wrong]))


# --- bounds ---


def test_four_mebibytes_are_taken_and_one_byte_more_is_not() -> None:
    start = body()
    assert parse_manifest(start + b" " * (MAX_BYTES - len(start)), None).layers
    assert str(MAX_BYTES) in refused(start + b" " * (MAX_BYTES - len(start) + 1))


def test_nesting_up_to_the_limit_is_taken_and_deeper_is_refused_before_parsing() -> None:
    def nested(depth: int) -> bytes:
        return body(x=1).replace(b'"x": 1', b'"x": ' + b"[" * depth + b"]" * depth)

    parse_manifest(nested(MAX_DEPTH - 1), None)
    assert "deeper" in refused(nested(MAX_DEPTH))
    assert "deeper" in refused(b"[" * MAX_BYTES)
    assert "deeper" in refused(b'{"a":' * 10_000)


def test_brackets_inside_strings_are_no_nesting() -> None:
    manifest = parse_manifest(body(annotations={"a": '[{"\\' * 500, "b\\": '"]' * 500}), None)
    assert manifest.annotations["a"] == '[{"\\' * 500


def test_descriptors_and_annotations_are_counted() -> None:
    assert len(parse_manifest(body(layers=[LAYER] * MAX_DESCRIPTORS), None).layers) == MAX_DESCRIPTORS
    assert str(MAX_DESCRIPTORS) in refused(body(layers=[LAYER] * (MAX_DESCRIPTORS + 1)))
    assert str(MAX_DESCRIPTORS) in refused(index(manifests=[LAYER] * (MAX_DESCRIPTORS + 1)))
    many = {str(n): "" for n in range(MAX_ANNOTATIONS + 1)}
    assert str(MAX_ANNOTATIONS) in refused(body(annotations=many))
    assert str(MAX_TEXT) in refused(body(annotations={"a": "x" * (MAX_TEXT + 1)}))


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b'"",' * (MAX_BYTES // 3 - 5) + b"0]",
        b"[" + b"1," * (MAX_BYTES // 2 - 5) + b"0]",
        b'"' + b'\\"' * (MAX_BYTES // 2 - 1),
        b'"' + b'\\"' * (MAX_BYTES // 2 - 1) + b"\\",
        b"{" + b"[]" * (MAX_BYTES // 2 - 1) + b"}",
    ],
    ids=["empty strings", "numbers", "escapes", "escapes to the last byte", "brackets"],
)
def test_four_mebibytes_of_the_costliest_json_take_little_memory(raw: bytes) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        refused(raw)
        assert tracemalloc.get_traced_memory()[1] < 48 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_values_are_counted_before_they_are_built() -> None:
    assert "objects and arrays" in refused(b"[" + b"[]," * 70_000 + b"0]")
    assert "values" in refused(b"[" + b"0," * 140_000 + b"0]")
