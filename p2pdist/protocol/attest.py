"""What nodes and the cluster sign: exact bytes, domain-separated, and the check of a signature. Pure."""

from __future__ import annotations

import struct
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def hello_bytes(nonce: bytes) -> bytes:
    """Signed by a node to prove to a tracker that it holds its key."""
    return b"p2pdist hello 1\0" + nonce


def membership_bytes(node: bytes, expires: int) -> bytes:
    """Signed by the cluster: `node` (32 bytes) is a member until `expires` (Unix seconds)."""
    return b"p2pdist member 1\0" + node + struct.pack("!q", expires)


def attestation_bytes(digest: str, chunk_size: int, index: int, sha256: bytes) -> bytes:
    """Signed by the node that read the chunk: chunk `index` of `digest` hashes to `sha256` (32 bytes)."""
    return b"p2pdist chunk 1\0" + struct.pack("!II", chunk_size, index) + sha256 + digest.encode()


def signature_holds(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` was made by the Ed25519 key `public_key` (32 bytes)."""
    try:
        _key(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=4096)  # a fifth of a check is the parsing of the key, and a cluster has few
def _key(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key)
