"""The torrents that stand for one blob. Pure.

Cold (nobody knows the chunk hashes yet): a function of digest, size, chunk size and the cluster's CA alone, so every
node derives the same info-hash and no metadata is exchanged. Mapped: the same with the real SHA-1 of every chunk.
Neither is `private` (BEP 27): that would forbid peer exchange and local discovery.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from p2pdist.oci import Digest
from p2pdist.protocol.bencode import encode
from p2pdist.protocol.chunks import chunk_count

SHA1 = 20  # bytes per piece in a version 1 torrent


@dataclass(frozen=True, slots=True)
class Metainfo:
    """A torrent: its bencoded form, and the info-hash (20 bytes) that names it among peers."""

    data: bytes
    key: bytes


def of_blob(digest: Digest, size: int, chunk_size: int, hashes: bytes = b"", ca: bytes = b"") -> Metainfo:
    """The torrent of a blob; `hashes`: all chunks' SHA-1 (empty: the cold one); `ca`: PEM, makes it an SSL torrent."""
    count = chunk_count(size, chunk_size)
    if hashes and len(hashes) != SHA1 * count:
        raise ValueError(f"{len(hashes)} bytes of hashes for {count} chunks")
    info: dict[bytes, int | bytes] = {
        b"length": size,
        b"name": digest.hex.encode(),
        b"piece length": chunk_size,
        b"pieces": hashes or bytes(SHA1 * count),
    }
    if ca:
        info[b"ssl-cert"] = ca
    encoded = encode(info)
    return Metainfo(b"d4:info" + encoded + b"e", hashlib.sha1(encoded, usedforsecurity=False).digest())
