"""A real torrent of a directory: version 1, with all hashes, as every BitTorrent client takes it. Blocking."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from p2pdist.errors import ConfigError, StorageError
from p2pdist.protocol.bencode import Bencodable, encode

_MIN, _MAX = 16 * 1024, 16 * 1024 * 1024  # bytes of a piece
_PIECES = 2048  # wanted at most: a .torrent of 40 KiB
_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Torrent:
    """`data`: the .torrent file. Sizes in bytes."""

    name: str
    data: bytes
    info_hash: bytes
    size: int
    piece_size: int
    trackers: tuple[str, ...]

    @property
    def magnet(self) -> str:
        """The magnet link (BEP 9)."""
        parts = [f"xt=urn:btih:{self.info_hash.hex()}", f"dn={quote(self.name)}"]
        parts += [f"tr={quote(tracker, safe='')}" for tracker in self.trackers]
        return "magnet:?" + "&".join(parts)


def piece_size_for(size: int) -> int:
    """A power of two, so that `size` bytes make at most 2048 pieces, from 16 KiB to 16 MiB."""
    piece = _MIN
    while piece < _MAX and size > piece * _PIECES:
        piece *= 2
    return piece


def make_torrent(directory: Path, piece_size: int | None = None, trackers: Sequence[str] = ()) -> Torrent:
    """The torrent of everything in `directory`; the same files always give the same info-hash.

    Raises:
        ConfigError: a piece size that is no power of two from 16 KiB to 16 MiB.
        StorageError: a file can't be read, or changes meanwhile.
    """
    try:
        files = [(path, path.stat().st_size) for path in sorted(directory.rglob("*")) if path.is_file()]
    except OSError as error:
        raise StorageError(f"{directory} can't be read: {error}") from error
    total = sum(size for _, size in files)
    piece = piece_size if piece_size is not None else piece_size_for(total)
    if not _MIN <= piece <= _MAX or piece & (piece - 1):
        raise ConfigError(f"a piece size of {piece} bytes: wanted a power of two from {_MIN} to {_MAX}")
    entries: list[Bencodable] = [
        {b"length": size, b"path": [os.fsencode(part) for part in path.relative_to(directory).parts]}
        for path, size in files
    ]
    info: dict[bytes, Bencodable] = {
        b"files": entries,
        b"name": os.fsencode(directory.name),
        b"piece length": piece,
        b"pieces": b"".join(_pieces(files, piece)),
    }
    metainfo: dict[bytes, Bencodable] = {b"info": info}
    if trackers:
        metainfo[b"announce"] = trackers[0].encode()
        metainfo[b"announce-list"] = [[tracker.encode()] for tracker in trackers]  # BEP 12
    info_hash = hashlib.sha1(encode(info), usedforsecurity=False).digest()
    return Torrent(directory.name, encode(metainfo), info_hash, total, piece, tuple(trackers))


def _pieces(files: Sequence[tuple[Path, int]], piece: int) -> Iterator[bytes]:
    """The SHA-1 of each piece of the files one after the other."""
    hasher, room = hashlib.sha1(usedforsecurity=False), piece
    for path, size in files:
        left = size
        try:
            with path.open("rb") as file:
                while left and (data := file.read(min(_READ, left, room))):
                    hasher.update(data)
                    left, room = left - len(data), room - len(data)
                    if not room:
                        yield hasher.digest()
                        hasher, room = hashlib.sha1(usedforsecurity=False), piece
        except OSError as error:
            raise StorageError(f"{path} can't be read: {error.strerror}") from error
        if left:
            raise StorageError(f"{path} became shorter while it was read")
    if room < piece:
        yield hasher.digest()
