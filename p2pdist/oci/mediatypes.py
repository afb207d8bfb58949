"""Media types of manifests and indexes. Everything else is carried through unread."""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

ACCEPT_MANIFESTS = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
"""For an Accept header. Without `*/*`, so that no registry answers with schema 1."""


def normalised(media_type: str) -> str:
    """`media_type` without parameters, in lower case (RFC 9110 section 8.3.1: it is case-insensitive)."""
    return media_type.partition(";")[0].strip().lower()


def is_index(media_type: str) -> bool:
    """Whether it lists manifests: an OCI index or a Docker manifest list."""
    return normalised(media_type) in {OCI_INDEX, DOCKER_LIST}


def is_manifest(media_type: str) -> bool:
    """Whether it is one image's (or artifact's) manifest: OCI or Docker schema 2."""
    return normalised(media_type) in {OCI_MANIFEST, DOCKER_MANIFEST}


def is_schema1(media_type: str) -> bool:
    """Whether it is Docker's schema 1, which p2pdist refuses: its digest does not cover the bytes that are served."""
    return normalised(media_type) in {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}
