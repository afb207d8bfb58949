"""Manifests and indexes: bytes in, checked values out, the bytes kept.

Rules of `parse_manifest`, each an InvalidManifest when broken:
1. The JSON rules of `boundedjson`.
2. `schemaVersion` is 2. Schema 1 is refused by name.
3. The kind (manifest or index) is one and the same by transport media type, by `mediaType` in the body and by
   structure; a body that could be read as both is refused (CVE-2021-41190).
4. No field that we read is written in another case: Go's clients would read it, we would not.
5. Descriptors have a media type, a digest of a known algorithm and a size that is a whole number from 0 to 2**63-1.
6. Counts and lengths stay under the limits below.

Unknown fields and media types survive: nothing is ever re-serialised, `raw` is what was hashed and what is served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from p2pdist.errors import InvalidDigest, InvalidManifest
from p2pdist.oci import boundedjson, mediatypes
from p2pdist.oci.digest import Digest

MAX_DESCRIPTORS = 4096
MAX_ANNOTATIONS = 1024  # per object
MAX_URLS = 64  # per descriptor
MAX_TEXT = 64 * 1024  # characters of one annotation; certificate chains and SBOM fragments are kept in them
MAX_SIZE = 2**63 - 1

_MEDIA_TYPE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")

_MANIFEST_FIELDS = ("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations")
_INDEX_FIELDS = ("schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations")
_DESCRIPTOR_FIELDS = ("mediaType", "digest", "size", "annotations", "artifactType", "platform", "urls")
_PLATFORM_FIELDS = ("architecture", "os", "os.version", "os.features", "variant")
_FOLDED = {name.casefold(): name for name in _MANIFEST_FIELDS + _INDEX_FIELDS + _DESCRIPTOR_FIELDS + _PLATFORM_FIELDS}


def _no_annotations() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on (OCI image-spec, image-index.md, "platform"). Empty text where it isn't given."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content (OCI image-spec, descriptor.md). `size` in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=_no_annotations, hash=False)
    artifact_type: str | None = None
    platform: Platform | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image's or artifact's manifest: OCI, or Docker schema 2. `raw` is what came, `digest` its digest."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=_no_annotations, hash=False)
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests: an OCI index, or a Docker manifest list. `raw` is what came, `digest` its digest."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=_no_annotations, hash=False)
    artifact_type: str | None = None


def parse_manifest(raw: bytes, media_type: str | None, algorithm: str = "sha256") -> Manifest | Index:
    """What `raw` says, by the rules of this module.

    Args:
        raw: the bytes as they came; at most `boundedjson.MAX_BYTES`.
        media_type: the transport's Content-Type. None or one that isn't a manifest's: the body decides.
        algorithm: of the digest in the result; that of the digest it was asked by.

    Raises:
        InvalidManifest: any rule broken.
    """
    if media_type is not None and mediatypes.is_schema1(media_type):
        raise _schema1()
    body = boundedjson.parse(raw)
    if not isinstance(body, dict):
        raise InvalidManifest(f"a manifest is a JSON object; got {_kind(body)}")
    _check_schema_version(body)
    chosen, index = _decide(body, media_type)
    digest = _digest_of(raw, algorithm)
    _check_case(body, _INDEX_FIELDS if index else _MANIFEST_FIELDS, "the manifest")
    subject = _optional_descriptor(body, "subject")
    annotations = _annotations(body, "the manifest")
    artifact_type = _optional_media_type(body, "artifactType", "artifactType")
    if index:
        manifests = _descriptors(body, "manifests")
        return Index(raw, chosen, digest, manifests, subject, annotations, artifact_type)
    if body.get("config") is None:
        raise InvalidManifest("the manifest has no config")
    config = _descriptor(body["config"], "config")
    return Manifest(raw, chosen, digest, config, _descriptors(body, "layers"), subject, annotations, artifact_type)


# --- which kind it is ---------------------------------------------------------------------------------------------


def _check_schema_version(body: dict[str, Any]) -> None:
    version = body.get("schemaVersion")
    if type(version) is int and version == 1:
        raise _schema1()
    if type(version) is not int or version != 2:
        raise InvalidManifest(f"schemaVersion must be the number 2; got {_kind(version)}")


def _schema1() -> InvalidManifest:
    return InvalidManifest(
        "a Docker schema 1 manifest: p2pdist does not serve these (nor do Docker 28 and containerd 2);"
        " push the image again with a current client"
    )


def _decide(body: dict[str, Any], transport: str | None) -> tuple[str, bool]:
    """The media type to serve it under, and whether it is an index."""
    inner = _optional_media_type(body, "mediaType", "mediaType")
    if inner is not None and mediatypes.is_schema1(inner):
        raise _schema1()
    looks_index = "manifests" in body
    looks_manifest = "config" in body or "layers" in body
    if looks_index == looks_manifest:
        got = "both" if looks_index else "neither"
        raise InvalidManifest(f"a manifest has config and layers, an index has manifests; got {got}")
    for said, who in ((transport, "the registry's Content-Type"), (inner, "its mediaType")):
        if said is None:
            continue
        if (mediatypes.is_index(said) and looks_manifest) or (mediatypes.is_manifest(said) and looks_index):
            raise InvalidManifest(
                f"{who} is {said[:100]}, but the body is {'an index' if looks_index else 'a manifest'}"
            )
    if transport is not None and (mediatypes.is_index(transport) or mediatypes.is_manifest(transport)):
        return mediatypes.normalised(transport), looks_index
    if inner is not None:
        return inner, looks_index
    return (mediatypes.OCI_INDEX if looks_index else mediatypes.OCI_MANIFEST), looks_index


def _digest_of(raw: bytes, algorithm: str) -> Digest:
    try:
        return Digest.of(raw, algorithm)
    except InvalidDigest as error:
        raise InvalidManifest(str(error)) from error


# --- its parts ----------------------------------------------------------------------------------------------------


def _check_case(value: dict[str, Any], fields: tuple[str, ...], what: str) -> None:
    for key in value:
        if key not in fields and _FOLDED.get(key.casefold()) in fields:
            raise InvalidManifest(
                f"{what} has {key[:40]!r} where {_FOLDED[key.casefold()]!r} is meant: clients would read it differently"
            )


def _descriptors(body: dict[str, Any], name: str) -> tuple[Descriptor, ...]:
    # Go writes an empty list as null; registries hold such manifests.
    values = body.get(name)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise InvalidManifest(f"{name} must be a list; got {_kind(values)}")
    if len(values) > MAX_DESCRIPTORS:
        raise InvalidManifest(f"{name} has {len(values)} entries; at most {MAX_DESCRIPTORS} are taken")
    return tuple(_descriptor(value, f"{name}[{number}]") for number, value in enumerate(values))


def _optional_descriptor(body: dict[str, Any], name: str) -> Descriptor | None:
    value = body.get(name)
    return None if value is None else _descriptor(value, name)


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidManifest(f"{what} must be a descriptor; got {_kind(value)}")
    _check_case(value, _DESCRIPTOR_FIELDS, what)
    media_type = _optional_media_type(value, "mediaType", f"{what}.mediaType")
    if media_type is None:
        raise InvalidManifest(f"{what} has no mediaType")
    text = value.get("digest")
    if not isinstance(text, str):
        raise InvalidManifest(f"{what}.digest must be text; got {_kind(text)}")
    try:
        digest = Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidManifest(f"{what}.digest: {error}") from error
    size = value.get("size")
    if type(size) is not int or not 0 <= size <= MAX_SIZE:  # a bool is an int to isinstance
        raise InvalidManifest(f"{what}.size must be a whole number from 0 to 2**63-1; got {_kind(size)}")
    return Descriptor(
        media_type,
        digest,
        size,
        _annotations(value, what),
        _optional_media_type(value, "artifactType", f"{what}.artifactType"),
        _platform(value.get("platform"), f"{what}.platform"),
        _texts(value.get("urls"), f"{what}.urls"),
    )


def _platform(value: object, what: str) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidManifest(f"{what} must be an object; got {_kind(value)}")
    _check_case(value, _PLATFORM_FIELDS, what)

    def text(name: str) -> str:
        return _text(value.get(name) or "", f"{what}.{name}")

    features = _texts(value.get("os.features"), f"{what}.os.features")
    return Platform(text("os"), text("architecture"), text("variant"), text("os.version"), features)


def _annotations(value: dict[str, Any], what: str) -> Mapping[str, str]:
    annotations = value.get("annotations")
    if annotations is None:
        return _no_annotations()
    if not isinstance(annotations, dict):
        raise InvalidManifest(f"{what}: annotations must be an object; got {_kind(annotations)}")
    if len(annotations) > MAX_ANNOTATIONS:
        raise InvalidManifest(f"{what} has {len(annotations)} annotations; at most {MAX_ANNOTATIONS} are taken")
    checked = {_text(k, f"{what}: annotation"): _text(v, f"{what}: annotation") for k, v in annotations.items()}
    return MappingProxyType(checked)


def _texts(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_URLS:
        raise InvalidManifest(f"{what} must be a list of at most {MAX_URLS}; got {_kind(value)}")
    return tuple(_text(item, what) for item in value)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidManifest(f"{what} must be text; got {_kind(value)}")
    return boundedjson.check_text(value, what, MAX_TEXT)


def _optional_media_type(value: dict[str, Any], name: str, what: str) -> str | None:
    text = value.get(name)
    if text is None or text == "":
        return None
    if not isinstance(text, str) or _MEDIA_TYPE.fullmatch(text) is None:
        raise InvalidManifest(f"{what} must be a media type: 1 to 255 printable ASCII characters; got {_kind(text)}")
    return text


def _kind(value: object) -> str:
    """What a wrong value is, short enough for a message whoever wrote it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        return f"{type(value).__name__} {ascii(value)[:60]}"
    except ValueError:  # an integer too long to print
        return "a huge number"
