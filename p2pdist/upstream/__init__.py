"""Asynchronous client of the registries that blobs come from. Only from an allow list; nothing here hashes blobs."""

from p2pdist.upstream.answers import FetchedManifest, ManifestInfo, RawAnswer
from p2pdist.upstream.body import BlobBody
from p2pdist.upstream.credentials import Credentials
from p2pdist.upstream.registry import Registry
from p2pdist.upstream.settings import DOCKER_HUB_URL, UpstreamSettings
from p2pdist.upstream.upstreams import Upstreams

__all__ = [
    "DOCKER_HUB_URL",
    "BlobBody",
    "Credentials",
    "FetchedManifest",
    "ManifestInfo",
    "RawAnswer",
    "Registry",
    "UpstreamSettings",
    "Upstreams",
]
