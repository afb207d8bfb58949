"""Who is a member of the cluster: its certificate authority, certificates, join tokens and TLS contexts.

A certificate names one key in one role: `p2pdist://<cluster>/<role>/<hex of the key>`. A node's certificate is made for
the Ed25519 key that signs its attestations, so whoever speaks as a node over TLS is the one whose signatures count.
"""

from p2pdist.pki.authority import Authority, request_for, requested_key
from p2pdist.pki.contexts import TlsCredentials, certificates_of, insecure_context, peer_certificate
from p2pdist.pki.files import read_secret, write_secret
from p2pdist.pki.identity import Identity, Role, cluster_of, identity_of
from p2pdist.pki.token import JoinToken, hash_secret

__all__ = [
    "Authority",
    "Identity",
    "JoinToken",
    "Role",
    "TlsCredentials",
    "certificates_of",
    "cluster_of",
    "hash_secret",
    "identity_of",
    "insecure_context",
    "peer_certificate",
    "read_secret",
    "request_for",
    "requested_key",
    "write_secret",
]
