"""What nodes of the BitTorrent engine say to each other beside BitTorrent: control-link frames. Pure.

BitTorrent moves bytes; it can carry neither attestations nor who a peer is. So neighbours keep one control link: 4
bytes length (big endian), then a msgpack array `[tag, fields...]`; the first frame of each side is Hello. A blob is
named by the number that the sender of a frame gave it.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec
from msgspec import Meta

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits
from p2pdist.protocol.messages import DigestText, Index, NodeId, Size

VERSION = 1
MAX_NEEDS = 64  # chunks in one Need
MAX_HAVES = 1024  # chunks in one Have
MAP_PART = 48 * 1024 // 20 * 20  # bytes of hashes in one MapPart
_LENGTH = struct.Struct("!I")


class Frame(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=True):
    """Base of all."""


class Hello(Frame, frozen=True, tag="e"):
    """Who I am, and the port of my control links; BitTorrent listens on the next one (two: for mapped torrents)."""

    version: int
    node: NodeId
    port: Annotated[int, Meta(ge=1, le=65533)]


class Open(Frame, frozen=True, tag="o"):
    """I take part in this swarm; said again: what I said before has changed. `have`: bitmap of the chunks that I answer
    for (see Have), little endian. `torrents`: which of the blob's torrents take connections here: 1: the cold one,
    2: the one with real hashes.
    """

    number: int
    digest: DigestText
    size: Size
    chunk_size: int
    have: Annotated[bytes, Meta(max_length=limits.MAX_CHUNKS // 8)]
    torrents: Annotated[int, Meta(ge=0, le=3)] = 0


class Close(Frame, frozen=True, tag="c"):
    """I left it."""

    number: int


class Have(Frame, frozen=True, tag="h"):
    """I proved these chunks: from now on I answer for what I send of them."""

    number: int
    indexes: Annotated[list[Index], Meta(min_length=1, max_length=MAX_HAVES)]


class Bad(Frame, frozen=True, tag="b"):
    """What I had of chunk `index` was wrong, or I dropped it unproved: I do not answer for what I sent of it."""

    number: int
    index: Index


class Need(Frame, frozen=True, tag="n"):
    """Send me the attestations of these chunks."""

    number: int
    indexes: Annotated[list[Index], Meta(min_length=1, max_length=MAX_NEEDS)]


class Proof(Frame, frozen=True, tag="p"):
    """The attestation of chunk `index`, packed: asked for, or given by who read it from upstream to all that lack it.

    Empty: I have none, and do not answer for the chunk.
    """

    number: int
    index: Index
    attestation: Annotated[bytes, Meta(max_length=512)]


class Dial(Frame, frozen=True, tag="d"):
    """I open a BitTorrent connection to you for this swarm."""

    number: int


class Claim(Frame, frozen=True, tag="m"):
    """No tracker is there: I read chunk `index` from upstream."""

    number: int
    index: Index


class NeedMap(Frame, frozen=True, tag="w"):
    """Send me the SHA-1 of every chunk."""

    number: int


class MapPart(Frame, frozen=True, tag="s"):
    """Answer to NeedMap, in order: the SHA-1 of the chunks from `first` on."""

    number: int
    first: Index
    hashes: Annotated[bytes, Meta(max_length=MAP_PART)]


class Alive(Frame, frozen=True, tag="a"):
    """Nothing else to say."""


AnyFrame = Hello | Open | Close | Have | Bad | Need | Proof | Dial | Claim | NeedMap | MapPart | Alive
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
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > limits.MAX_LINK_FRAME:
                raise ProtocolError(f"a control frame of {length} bytes; at most {limits.MAX_LINK_FRAME} are taken")
            if len(self._buffer) - start - _LENGTH.size < length:
                break
            body = memoryview(self._buffer)[start + _LENGTH.size : start + _LENGTH.size + length]
            try:
                frames.append(_decoder.decode(body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"not a control frame: {error}") from error
            finally:
                body.release()
            start += _LENGTH.size + length
        if start:
            del self._buffer[:start]
        return frames
