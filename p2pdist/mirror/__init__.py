"""The registry mirror that container daemons ask: the read API of the OCI distribution-spec."""

from p2pdist.mirror.access import Access, read_passwords
from p2pdist.mirror.app import OnServed, app
from p2pdist.mirror.encryption import mirror_tls
from p2pdist.mirror.server import MirrorServer
from p2pdist.mirror.settings import MirrorSettings
from p2pdist.mirror.source import BlobHandle, RawAnswer, ServedManifest, Source

__all__ = [
    "Access",
    "BlobHandle",
    "MirrorServer",
    "MirrorSettings",
    "OnServed",
    "RawAnswer",
    "ServedManifest",
    "Source",
    "app",
    "mirror_tls",
    "read_passwords",
]
