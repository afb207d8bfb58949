"""The torrent of a blob: every node derives the same one, and libtorrent and other clients read it alike."""

from __future__ import annotations

import hashlib
import random

import libtorrent as lt
import pytest

from p2pdist.oci import Digest
from p2pdist.protocol.bencode import decode
from p2pdist.torrent.metainfo import of_blob

DATA = random.Random(2).randbytes(300_000)
DIGEST = Digest.of(DATA)
CHUNK = 64 * 1024
HASHES = b"".join(hashlib.sha1(DATA[at : at + CHUNK]).digest() for at in range(0, len(DATA), CHUNK))


def test_the_info_hash_is_a_function_of_digest_size_chunk_size_and_cluster() -> None:
    cold = of_blob(DIGEST, len(DATA), CHUNK)
    assert of_blob(DIGEST, len(DATA), CHUNK) == cold
    others = [
        of_blob(Digest.of(b"other"), len(DATA), CHUNK),
        of_blob(DIGEST, len(DATA) + 1, CHUNK),
        of_blob(DIGEST, len(DATA), 2 * CHUNK),
        of_blob(DIGEST, len(DATA), CHUNK, cluster="0123456789abcdef", name="node.p2pdist"),
        of_blob(DIGEST, len(DATA), CHUNK, HASHES),
    ]
    assert len({torrent.key for torrent in [cold, *others]}) == 6


@pytest.mark.parametrize("hashes", [b"", HASHES], ids=["cold", "mapped"])
def test_libtorrent_reads_it_as_meant_and_names_it_alike(hashes: bytes) -> None:
    torrent = of_blob(DIGEST, len(DATA), CHUNK, hashes)
    info = lt.load_torrent_buffer(torrent.data).ti
    assert info is not None
    assert info.info_hashes().v1.to_bytes() == torrent.key
    assert (info.name(), info.total_size(), info.piece_length()) == (DIGEST.hex, len(DATA), CHUNK)
    assert not info.priv()  # it would forbid peer exchange and local discovery
    assert decode(torrent.data)[b"info"][b"pieces"] == (hashes or bytes(20 * 5))  # type: ignore[index, call-overload]


def test_under_a_clusters_name_the_digest_still_decides() -> None:
    torrents = {
        of_blob(digest, 5, CHUNK, cluster=cluster, name="node.p2pdist").key
        for digest in (DIGEST, Digest.of(b"other"))
        for cluster in ("a" * 16, "b" * 16)
    }
    assert len(torrents) == 4


def test_hashes_of_another_number_of_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="hashes"):
        of_blob(DIGEST, len(DATA), CHUNK, HASHES[:-20])


@pytest.mark.parametrize("chunk", [64 * 1024, 16 * 1024 * 1024])
def test_the_largest_and_smallest_chunks_are_taken(chunk: int) -> None:
    size = 65_536 * chunk if chunk == 64 * 1024 else 5 * chunk
    assert lt.load_torrent_buffer(of_blob(DIGEST, size, chunk).data).ti is not None
