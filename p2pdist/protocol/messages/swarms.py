"""The chunks of blobs: who has and wants them, who reads them from upstream, and from whom others get them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pdist.protocol import limits
from p2pdist.protocol.messages.fields import DigestText, Index, Message, Signature, Size
from p2pdist.protocol.messages.session import Membership, PeerInfo


class Attestation(msgspec.Struct, frozen=True, array_like=True):
    """`signer` read chunk `index` of `digest` (cut in `chunk_size`) and its sha256 is `sha256`.

    Signed bytes: `protocol.attest.attestation_bytes`. Blob, chunk size and index are known from the context.
    """

    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signer: Membership
    signature: Signature


class Holds(Message, frozen=True):
    """Complete, proved blobs in this agent's store that it will serve. Sent after Welcome and when one is added."""

    digests: Annotated[list[DigestText], Meta(max_length=limits.MAX_HOLDS_PER_MESSAGE)]


class Drops(Message, frozen=True):
    """Blobs no longer held (evicted, corrupt)."""

    digests: Annotated[list[DigestText], Meta(max_length=limits.MAX_HOLDS_PER_MESSAGE)]


class Want(msgspec.Struct, frozen=True, array_like=True):
    """One blob of a Join. `have`: bitmap of proved chunks, little endian, valid for `chunk_size` only.

    What another tracker, or this one before it was restarted, has leased is said again: the chunks that are on their
    way from upstream (`reading`), or that a stream of everything that is missing runs (`streaming`).
    """

    digest: DigestText
    size: Size
    chunk_size: int = 0  # 0: none yet, the tracker decides
    have: Annotated[bytes, Meta(max_length=limits.MAX_CHUNKS // 8)] = b""
    reading: Annotated[list[Index], Meta(max_length=64)] = []
    streaming: bool = False


class Join(Message, frozen=True):
    """Wants the blobs of one rollout (the layers of one manifest, earliest first; or a single blob)."""

    rollout: DigestText  # the manifest's digest; a lone blob's own digest
    registry: Annotated[str, Meta(max_length=255)]  # the upstream they come from: credits are bounded per registry
    wants: Annotated[list[Want], Meta(min_length=1, max_length=limits.MAX_BLOBS_PER_JOIN)]


class Swarm(msgspec.Struct, frozen=True, array_like=True):
    """State of one blob's swarm at joining: the chunk size everyone uses, and how many take part or hold it."""

    digest: DigestText
    chunk_size: int
    members: int
    holders: int


class Joined(Message, frozen=True):
    """Answer to Join: the swarms, in the order of the wants, and the first neighbours for the whole rollout."""

    rollout: DigestText
    swarms: list[Swarm]
    peers: list[PeerInfo]


class More(Message, frozen=True):
    """Wants up to `count` more neighbours for this blob."""

    digest: DigestText
    count: Annotated[int, Meta(ge=1, le=limits.MAX_NEIGHBOURS)]


class Miss(Message, frozen=True):
    """Nothing came for a while and no neighbour has these chunks."""

    digest: DigestText
    indexes: Annotated[list[Index], Meta(max_length=256)]


class Neighbours(Message, frozen=True):
    """More peers to link to (answer to More, or a replacement)."""

    peers: list[PeerInfo]


class Lease(Message, frozen=True):
    """Read chunks `first` .. `first + count - 1` of `digest` from upstream, and attest each.

    `alone`: the node is the only one interested: the lease covers the rest of the blob, to be read as one stream;
    no Half or Got is sent until a Recall.
    `source`: read them from this node of another zone, as any chunk of a peer's, with its attestation.
    """

    digest: DigestText
    first: Index
    count: int
    alone: bool = False
    source: PeerInfo | None = None


class Half(Message, frozen=True):
    """Half of leased chunk `index` has arrived from upstream: the credit comes back."""

    digest: DigestText
    index: Index


class Got(Message, frozen=True):
    """Leased chunk `index` is here, proved and attested."""

    digest: DigestText
    index: Index
    sha256: bytes
    signature: bytes


class Failed(Message, frozen=True):
    """A leased read from upstream failed. `status`: HTTP status, 0 if none. `final`: missing or forbidden."""

    digest: DigestText
    index: Index
    status: int
    final: bool
    retry_after: float = 0.0
    reason: Annotated[str, Meta(max_length=512)] = ""


class Recall(Message, frozen=True):
    """Others joined: finish the chunk at hand, stop the lone stream and answer Returned."""

    digest: DigestText


class Returned(Message, frozen=True):
    """Answer to Recall: the lone lease is over; `have` is what was read (bitmap, little endian)."""

    digest: DigestText
    have: Annotated[bytes, Meta(max_length=limits.MAX_CHUNKS // 8)]


class Throttle(Message, frozen=True):
    """The upstream asked for a pause: start no read from `registry` for `seconds`."""

    registry: str
    seconds: float


class Done(Message, frozen=True):
    """The whole digest is proved; this node now holds it."""

    digest: DigestText


class Leave(Message, frozen=True):
    """No longer wants (cancelled) this blob."""

    digest: DigestText


class Gone(Message, frozen=True):
    """The upstream says that this blob is missing (404) or forbidden (401, 403); the swarm is over."""

    digest: DigestText
    status: int
