"""False chunks: who is accused, what proves it, and who reads again what."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pdist.protocol import limits
from p2pdist.protocol.messages.fields import DigestText, Index, Message, NodeId, Size
from p2pdist.protocol.messages.swarms import Attestation


class Accuse(Message, frozen=True):
    """`peer` sent bytes that do not match the attestation it sent with them."""

    peer: NodeId
    digest: DigestText
    index: Index


class Convict(Message, frozen=True):
    """`statement` is false, and this node can prove it: it has the whole blob, and will show it when asked.

    `other`: another statement of the same signer of the same chunk; the two prove it by themselves.
    """

    digest: DigestText
    size: Size
    chunk_size: Annotated[int, Meta(ge=limits.MIN_CHUNK, le=limits.MAX_CHUNK)]
    index: Index
    statement: Attestation
    other: Attestation | None = None


class Show(Message, frozen=True):
    """Answer to Convict: send `length` bytes of the blob from `offset` on, to be hashed; all of it, piece by piece."""

    digest: DigestText
    offset: Size
    length: Annotated[int, Meta(ge=1, le=limits.PIECE_SHOWN)]


class Shown(Message, frozen=True):
    """Answer to Show: bytes of the blob from `offset` on; none: it isn't here any more."""

    digest: DigestText
    offset: Size
    data: Annotated[bytes, Meta(max_length=limits.PIECE_SHOWN)] = b""


class Doubts(Message, frozen=True):
    """Every chunk was proved and the whole digest is wrong: who is to read again what?"""

    digest: DigestText
    size: Size
    chunk_size: Annotated[int, Meta(ge=limits.MIN_CHUNK, le=limits.MAX_CHUNK)]


class Search(Message, frozen=True):
    """Answer to Doubts: it is this node's turn to read again what others attested, and to say Settled."""

    digest: DigestText


class Settled(Message, frozen=True):
    """Answer to Search: the digest holds now, and these chunks were false."""

    digest: DigestText
    chunk_size: Annotated[int, Meta(ge=limits.MIN_CHUNK, le=limits.MAX_CHUNK)]
    indexes: Annotated[list[Index], Meta(max_length=limits.MAX_SUSPECTS)]


class Suspects(Message, frozen=True):
    """Answer to Doubts: a node that has the blob whole by now says that these chunks were false."""

    digest: DigestText
    chunk_size: int
    indexes: Annotated[list[Index], Meta(max_length=limits.MAX_SUSPECTS)]
