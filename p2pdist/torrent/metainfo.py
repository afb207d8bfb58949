"""The torrents that stand for one blob. Pure.

Cold (nobody knows the chunk hashes yet): a function of digest, size, chunk size and the cluster's name alone, so every
node derives the same info-hash and no metadata is exchanged. Mapped: the same with the real SHA-1 of every chunk.
Neither is `private` (BEP 27): that would forbid peer exchange and local discovery. In a cluster with an authority the
torrent's name is that of its nodes' certificates, because libtorrent compares the two; the authority's certificate is
not in the torrent, so that its renewal does not split the swarms.
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


def of_blob(
    digest: Digest, size: int, chunk_size: int, hashes: bytes = b"", *, cluster: str = "", name: str = ""
) -> Metainfo:
    """The torrent of a blob; `hashes`: all chunks' SHA-1 (empty: the cold one); `cluster`, `name`: see the module."""
    count = chunk_count(size, chunk_size)
    if hashes and len(hashes) != SHA1 * count:
        raise ValueError(f"{len(hashes)} bytes of hashes for {count} chunks")
    info: dict[bytes, int | bytes] = {
        b"length": size,
        b"name": (name or digest.hex).encode(),
        b"piece length": chunk_size,
        b"pieces": hashes or bytes(SHA1 * count),
    }
    if cluster:
        info[b"x-p2pdist"] = f"{digest} {cluster}".encode()
    encoded = encode(info)
    return Metainfo(b"d4:info" + encoded + b"e", hashlib.sha1(encoded, usedforsecurity=False).digest())
