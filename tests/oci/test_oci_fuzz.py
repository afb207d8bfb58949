"""Whatever the bytes, parse_manifest returns what can be relied on or raises InvalidManifest, nothing else."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import descriptor, make_image, make_index

from p2pdist.errors import InvalidManifest
from p2pdist.oci import OCI_MANIFEST, Descriptor, Digest, Index, Manifest, is_index, is_manifest, parse_manifest

IMAGE = make_image([b"a", b"b"], annotations={"k": "v"}, subject=descriptor(b"x", OCI_MANIFEST))
SEEDS = [IMAGE.raw, make_image([b"a"], docker=True).raw, make_index([IMAGE]), make_index([IMAGE], docker=True)]
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"\xff",
    b"\\ud800",
    b"0" * 30,
    b'"size"',
    b'"digest"',
    b'"layers"',
    b'"manifests"',
    b'"Config"',
    b"\x00",
    b"\xef\xbb\xbf",
]
media_types = st.none() | st.sampled_from([OCI_MANIFEST, "application/json", "x"]) | st.text(max_size=30)


def check(raw: bytes, media_type: str | None) -> None:
    try:
        parsed = parse_manifest(raw, media_type)
    except InvalidManifest as error:
        assert len(str(error)) < 500
        str(error).encode()
        return
    assert parsed.raw == raw and parsed.digest == Digest.of(raw)
    if isinstance(parsed, Index):
        assert not is_manifest(parsed.media_type)
        descriptors = parsed.manifests
    else:
        assert isinstance(parsed, Manifest) and not is_index(parsed.media_type)
        descriptors = (parsed.config, *parsed.layers)
    for one in descriptors:
        assert isinstance(one, Descriptor) and type(one.size) is int and one.size >= 0
        one.media_type.encode("ascii")
        assert all(k.encode() is not None and v.encode() is not None for k, v in one.annotations.items())
    hash(parsed)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "copy", "token"]))
        if kind == "flip" and at < len(raw):
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            raw[at:at] = draw(st.binary(max_size=8))
        elif kind == "delete":
            del raw[at : at + draw(st.integers(1, 40))]
        elif kind == "copy":
            raw[at:at] = raw[at : at + draw(st.integers(1, 200))] * draw(st.integers(1, 40))
        else:
            raw[at:at] = draw(st.sampled_from(TOKENS))
    return bytes(raw)


@settings(max_examples=400)
@given(mutated(), media_types)
def test_mutated_manifests_parse_or_are_refused(raw: bytes, media_type: str | None) -> None:
    check(raw, media_type)


@given(st.binary(max_size=300), media_types)
def test_arbitrary_bytes_are_refused(raw: bytes, media_type: str | None) -> None:
    check(raw, media_type)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([str(IMAGE.digest), OCI_MANIFEST]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config",
                    "layers",
                    "manifests",
                    "size",
                    "digest",
                    "mediaType",
                    "platform",
                    "annotations",
                    "os",
                    "urls",
                    "Size",
                ]
            )
            | st.text(max_size=8),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


FIELDS = ["config", "layers", "manifests", "subject", "annotations", "artifactType", "mediaType", "schemaVersion", "x"]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3), st.integers(0, 3))
def test_manifests_with_fields_of_any_json_parse_or_are_refused(seed: bytes, changes: dict, where: int) -> None:
    value = json.loads(seed)
    target = value
    if where and (listed := value.get("layers") or value.get("manifests")):
        target = listed[0]
    target.update(changes)
    check(json.dumps(value).encode("utf-8", "surrogatepass"), None)
