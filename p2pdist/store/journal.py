"""The journal beside a partial blob: which chunks were proved, by what sha256, and the evidence for it.

A header, then one record for each proof. Records are only claims: after a crash every claimed chunk is hashed again,
so neither the journal nor the data needs an fsync while a blob is fetched, and a journal that is torn, cut or full of
zeros after a power failure costs chunks, never correctness. A record that doesn't check ends the reading.

    header   magic, chunk size, blob size, digest text, crc32
    record   state ("+"; once forgotten "-"), crc32 of the rest, chunk index, length of evidence, sha256, evidence
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from p2pdist.errors import InputError, InvalidDigest
from p2pdist.oci import Digest
from p2pdist.protocol.chunks import valid_chunk_size

MAX_EVIDENCE = 4096  # bytes; an attestation is about 205

_MAGIC = b"p2pdist partial 1\n"
_HEADER = struct.Struct(">18sIQH")  # magic, chunk size, blob size, length of the digest's text
_CRC = struct.Struct(">I")
_RECORD = struct.Struct(">cIIH32s")  # state, crc32 of what follows it, index, length of evidence, sha256
_CHECKED = struct.Struct(">IH32s")
_HELD, _FORGOTTEN = b"+", b"-"
_READ = 64 * 1024


@dataclass(frozen=True, slots=True)
class Heading:
    """What a journal is about. Sizes in bytes."""

    digest: Digest
    size: int
    chunk_size: int

    def encode(self) -> bytes:
        text = str(self.digest).encode()
        body = _HEADER.pack(_MAGIC, self.chunk_size, self.size, len(text)) + text
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def read(cls, fd: int) -> Heading | None:
        """The heading of the open journal, or None if it hasn't a whole and sensible one."""
        head = os.pread(fd, _HEADER.size + 256, 0)
        if len(head) < _HEADER.size:
            return None
        magic, chunk_size, size, length = _HEADER.unpack_from(head)
        end = _HEADER.size + length
        if magic != _MAGIC or len(head) < end + _CRC.size or _CRC.unpack_from(head, end)[0] != zlib.crc32(head[:end]):
            return None
        try:
            digest = Digest.parse(head[_HEADER.size : end].decode("ascii"))
        except (InvalidDigest, UnicodeDecodeError):
            return None
        return cls(digest, size, chunk_size) if valid_chunk_size(size, chunk_size) else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One chunk that was proved: `sha256` of its bytes (32 bytes), `evidence` as the prover gave it."""

    index: int
    sha256: bytes
    evidence: bytes


class Journal:
    """The open journal of one partial blob. Blocking, small writes into the page cache; OSErrors pass through."""

    def __init__(self, fd: int, end: int) -> None:
        self._fd = fd
        self._end = end  # of the last whole record; a torn one behind it is overwritten
        self._where: dict[int, int] = {}

    @classmethod
    def create(cls, fd: int, heading: Heading) -> Journal:
        """A new journal in the empty file `fd`, which it owns from now on."""
        return cls(fd, _write(fd, heading.encode(), 0))

    @classmethod
    def resume(cls, fd: int, heading: Heading) -> tuple[Journal, dict[int, Claim]]:
        """Goes on with the journal in `fd`, which it owns from now on, and what it claims."""
        journal = cls(fd, len(heading.encode()))
        claims: dict[int, Claim] = {}
        for claim, held, start, end in _records(fd, journal._end):
            journal._end = end
            if held:
                claims[claim.index], journal._where[claim.index] = claim, start
        return journal, claims

    def add(self, claim: Claim) -> None:
        """Appends a proof of a chunk that has none. If that fails nothing was added."""
        if len(claim.sha256) != 32 or len(claim.evidence) > MAX_EVIDENCE:
            raise InputError(
                f"a proof is a sha256 of 32 bytes and evidence of at most {MAX_EVIDENCE};"
                f" got {len(claim.sha256)} and {len(claim.evidence)}"
            )
        checked = _CHECKED.pack(claim.index, len(claim.evidence), claim.sha256) + claim.evidence
        record = _HELD + _CRC.pack(zlib.crc32(checked)) + checked
        end = _write(self._fd, record, self._end)
        self._where[claim.index], self._end = self._end, end

    def drop(self, index: int) -> None:
        """Marks the proof of `index` forgotten, in place: that works on a full disk too."""
        where = self._where.get(index)
        if where is not None:
            os.pwrite(self._fd, _FORGOTTEN, where)
            del self._where[index]

    def close(self) -> None:
        os.close(self._fd)


def _records(fd: int, position: int) -> Iterator[tuple[Claim, bool, int, int]]:
    """Each whole record: the claim, whether it is held, where it starts, where it ends. Reads in bounded pieces."""
    window, base = b"", position
    while True:
        offset = position - base
        if len(window) - offset < _RECORD.size + MAX_EVIDENCE:
            window, base, offset = os.pread(fd, _READ, position), position, 0
        if len(window) - offset < _RECORD.size:
            return
        state, crc, index, length, sha256 = _RECORD.unpack_from(window, offset)
        end = offset + _RECORD.size + length
        if state not in (_HELD, _FORGOTTEN) or length > MAX_EVIDENCE or end > len(window):
            return
        if zlib.crc32(window[offset + 1 + _CRC.size : end]) != crc:
            return
        claim = Claim(index, sha256, window[offset + _RECORD.size : end])
        yield claim, state == _HELD, position, base + end
        position = base + end


def _write(fd: int, data: bytes, position: int) -> int:
    """All of `data` at `position`; where it ends."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, position)
        rest, position = rest[count:], position + count
    return position
