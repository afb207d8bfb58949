"""The OCI vocabulary: digests, references, descriptors, manifests. Pure; nothing wrong can be constructed."""

from p2pdist.oci.digest import Digest
from p2pdist.oci.manifest import Descriptor, Index, Manifest, Platform, parse_manifest
from p2pdist.oci.mediatypes import (
    ACCEPT_MANIFESTS,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    is_index,
    is_manifest,
)
from p2pdist.oci.pattern import ImagePattern
from p2pdist.oci.reference import Reference, Repository, valid_registry, valid_tag

__all__ = [
    "ACCEPT_MANIFESTS",
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "OCI_INDEX",
    "OCI_MANIFEST",
    "Descriptor",
    "Digest",
    "ImagePattern",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "Repository",
    "is_index",
    "is_manifest",
    "parse_manifest",
    "valid_registry",
    "valid_tag",
]
