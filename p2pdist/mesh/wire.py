"""What mesh agents say to each other: control-link frames and the HTTP heads of the peer port. Pure.

Control link: after `GET /v1/link` with `Upgrade: p2pdist-link/1` and its 101, both sides send frames: 4 bytes length
(big endian), then a msgpack array `[tag, fields...]`. Data: `GET /v1/blobs/DIGEST` with a Range (RFC 9110, section
14) -> 206, or 503 when all upload slots are taken.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits
from p2pdist.protocol.messages import DigestText, Index, Size

UPGRADE = "p2pdist-link/1"
_LENGTH = struct.Struct("!I")
Count = Annotated[int, Meta(ge=0, le=65_535)]


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=True):
    """Base of all."""


class Open(Frame, frozen=True, tag="o"):
    """I take part in this swarm. `have`: bitmap of proved chunks, little endian; further frames name it by `number`."""

    number: int
    digest: DigestText
    size: Size
    chunk_size: int
    have: Annotated[bytes, Meta(max_length=limits.MAX_CHUNKS // 8)]


class Close(Frame, frozen=True, tag="c"):
    """I left it."""

    number: int


class Have(Frame, frozen=True, tag="h"):
    """I have chunk `index`, or half of it; `load`: my uploads active and waiting, `active`: my downloads."""

    number: int
    index: Index
    load: Count
    active: Count


class Claim(Frame, frozen=True, tag="m"):
    """No tracker is there: I read chunk `index` from upstream."""

    number: int
    index: Index


class Alive(Frame, frozen=True, tag="a"):
    """Nothing else to say."""


AnyFrame = Open | Close | Have | Claim | Alive
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyFrame)


def encode(frame: AnyFrame) -> bytes:
    """A frame with its length."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[AnyFrame]:
        """The frames that `data` completes; ProtocolError if it is no frame of this protocol."""
        self._buffer += data
        frames: list[AnyFrame] = []
        start = 0
        while len(self._buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > limits.MAX_LINK_FRAME:
                raise ProtocolError(f"a control frame of {length} bytes; at most {limits.MAX_LINK_FRAME} are taken")
            if len(self._buffer) - start - 4 < length:
                break
            try:
                frames.append(_decoder.decode(memoryview(self._buffer)[start + 4 : start + 4 + length]))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"not a control frame: {error}") from error
            start += 4 + length
        if start:
            del self._buffer[:start]
        return frames


def mask(bitmap: bytes) -> int:
    """A bitmap from the wire as an int."""
    return int.from_bytes(bitmap, "little")


def bitmap(value: int, count: int) -> bytes:
    """The reverse, for `count` chunks."""
    return value.to_bytes((count + 7) // 8, "little")


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an HTTP/1.1 message: its first line's three words, and its headers by lower-case name."""

    words: tuple[str, str, str]
    headers: Mapping[str, str]

    @property
    def status(self) -> int:
        """The status of a response; 0 if this is none."""
        return int(self.words[1]) if self.words[1].isdigit() else 0

    def number(self, name: str) -> int:
        """A header that is a non-negative number; 0 where it is missing or none."""
        value = self.headers.get(name, "")
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 15 else 0


def parse_head(data: bytes) -> Head:
    """An HTTP/1.1 head without its final empty line (RFC 9112, sections 2-5); ProtocolError if it is malformed."""
    try:
        lines = data.decode("ascii").split("\r\n")
    except UnicodeDecodeError as error:
        raise ProtocolError("an HTTP head that is not ASCII") from error
    words = lines[0].split(" ", 2)
    if len(words) != 3:
        raise ProtocolError("an HTTP head without a proper first line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or "\n" in line or "\r" in line:
            raise ProtocolError("a malformed HTTP header")
        lower = name.lower()
        if lower in headers:
            raise ProtocolError(f"the header {lower!r} twice")
        headers[lower] = value.strip()
    return Head((words[0], words[1], words[2]), headers)


def parse_range(text: str) -> tuple[int, int] | None:
    """`bytes=A-B` as first byte and the byte after the last; None if it is not of that form."""
    unit, equals, span = text.partition("=")
    first, dash, last = span.partition("-")
    if unit != "bytes" or not equals or not dash or not (first.isdigit() and last.isdigit()):
        return None
    if len(first) > 15 or len(last) > 15 or int(last) < int(first):
        return None
    return int(first), int(last) + 1
