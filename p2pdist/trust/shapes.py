"""Signature objects by their shape: what clients fetch to check signatures themselves passes a policy unsigned.

cosign and podman ask the mirror for `.sig`, `.att` and `.sbom` tags, for fallback tags and for referrers. They pass
because they can't be run, and that is what is checked: by type and size, and, where a daemon might take the object
for an image all the same (dockerd asks for no layer types, containerd for no config type), by content. What is in the
wrong shape is judged like any image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pdist.oci import Descriptor, Digest, Index, Manifest
from p2pdist.trust import limits
from p2pdist.trust.fetch import DSSE_TYPE
from p2pdist.trust.notation import ARTIFACT_TYPE as NOTATION_TYPE
from p2pdist.trust.notation import ENVELOPE_TYPES
from p2pdist.trust.referrers import BUNDLE_TYPE
from p2pdist.trust.signatures.simplesigning import MEDIA_TYPE as SIMPLE_TYPE

_OBJECT_TAG = re.compile(r"sha256-[0-9a-f]{64}\.(?:sig|att|sbom)")
_FALLBACK_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")
_EMPTY = Digest.of(b"{}")

_IMAGE_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_JSON_LIMITS = {
    SIMPLE_TYPE: limits.PAYLOAD,
    DSSE_TYPE: limits.ENVELOPE,
    "application/spdx+json": limits.TOTAL,
    "application/vnd.cyclonedx+json": limits.TOTAL,
    "application/vnd.in-toto+json": limits.TOTAL,
    "application/vnd.syft+json": limits.TOTAL,
    "text/spdx+json": limits.TOTAL,
}
_TEXT_LIMITS = {
    "application/vnd.cyclonedx": limits.TOTAL,
    "application/vnd.cyclonedx+xml": limits.TOTAL,
    "text/spdx": limits.TOTAL,
    "text/spdx+xml": limits.TOTAL,
}
_TEXT_STARTS = (b"{", b"[", b"<", b"SPDX", b"\xef\xbb\xbf<")


@dataclass(frozen=True, slots=True)
class SignatureObject:
    """What may be served of a signature object. `read_first`: layers whose content must be checked before."""

    blobs: frozenset[Digest]
    read_first: tuple[Descriptor, ...]


def signature_object(target: str, manifest: Manifest | Index) -> SignatureObject | None:
    """What is exempt of `manifest`, asked for as `target` (a tag or a digest); None: it is judged as an image."""
    if len(manifest.raw) > limits.SIGNATURE_MANIFEST:
        return None
    if isinstance(manifest, Index):
        return _index(target, manifest)
    by_digest = ":" in target
    if not by_digest and manifest.subject is None and _OBJECT_TAG.fullmatch(target) is None:
        return None
    if not 1 <= len(manifest.layers) <= limits.SIGNATURES or sum(one.size for one in manifest.layers) > limits.TOTAL:
        return None
    if not all(layer.size <= _limit(layer.media_type) for layer in manifest.layers):
        return None
    if not _config(manifest.config):
        return None
    blobs = frozenset({manifest.config.digest, *(layer.digest for layer in manifest.layers)})
    # Without a config that lists layers there is nothing to run; with one, the layers must not be archives.
    return SignatureObject(blobs, () if manifest.config.digest == _EMPTY else manifest.layers)


def is_no_archive(layer: Descriptor, data: bytes) -> bool:
    """Whether the content of a `read_first` layer is what its type says, and so no archive."""
    if layer.media_type in _TEXT_LIMITS:
        return data.startswith(_TEXT_STARTS) and b"\0" not in data and _utf8(data)
    if layer.media_type in _JSON_LIMITS or layer.media_type.startswith(BUNDLE_TYPE):
        return data.lstrip()[:1] in (b"{", b"[") and _utf8(data) and b"\0" not in data
    return layer.media_type in ENVELOPE_TYPES and data[:1] in (b"{", b"\xd2")  # a JSON object, a tagged COSE_Sign1


def _index(target: str, index: Index) -> SignatureObject | None:
    # Its entries are not let through with it: each is judged by its own shape when it is asked for.
    named = _FALLBACK_TAG.fullmatch(target) is not None
    listed = ":" in target and bool(index.manifests)
    if named or (listed and all(_signature_type(one.artifact_type or "") for one in index.manifests)):
        return SignatureObject(frozenset(), ())
    return None


def _signature_type(artifact_type: str) -> bool:
    return artifact_type == NOTATION_TYPE or artifact_type.startswith((BUNDLE_TYPE, "application/vnd.dev.cosign."))


def _limit(media_type: str) -> int:
    """Bytes that a layer of this type may have; -1: no signature is of this type."""
    if media_type.startswith(BUNDLE_TYPE) or media_type in ENVELOPE_TYPES:
        return limits.ENVELOPE
    return _JSON_LIMITS.get(media_type, _TEXT_LIMITS.get(media_type, -1))


def _config(config: Descriptor) -> bool:
    if config.size > limits.PAYLOAD:
        return False
    return config.digest == _EMPTY or config.media_type in _IMAGE_CONFIGS or _signature_type(config.media_type)


def _utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
