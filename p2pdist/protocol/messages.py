"""Messages between an agent and its tracker: one WebSocket, binary frames, each frame a msgpack array of these.

A node is named by its Ed25519 public key (32 bytes): whoever holds the private key is the node. Digests are the
text form (`sha256:...`). Chunks are numbered from 0. Everything is bounded by `limits`; decoding enforces the
collection bounds below, the transport enforces frame sizes.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits

NodeId = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
DigestText = Annotated[str, Meta(max_length=135, pattern=r"^[a-z0-9]+:[0-9a-f]+$")]
Key = Annotated[str, Meta(max_length=limits.MAX_KEY)]
Index = Annotated[int, Meta(ge=0, lt=limits.MAX_CHUNKS)]
JobId = Annotated[str, Meta(max_length=32, pattern=r"^[0-9a-z]+$")]
Size = Annotated[int, Meta(ge=0, le=limits.MAX_BLOB)]
Labels = Annotated[dict[Annotated[str, Meta(max_length=63)], Annotated[str, Meta(max_length=255)]], Meta(max_length=32)]


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=True):
    """Base of all; encoded as an array `[tag, fields...]`."""


# --- attestations and membership ---------------------------------------------------------------------------------


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """The cluster's statement that `node` is a member until `expires` (Unix seconds), signed with the cluster key.

    Signed bytes: `protocol.attest.membership_bytes`.
    """

    node: NodeId
    expires: int
    signature: Signature


class Attestation(msgspec.Struct, frozen=True, array_like=True):
    """`signer` read chunk `index` of `digest` (cut in `chunk_size`) and its sha256 is `sha256`.

    Signed bytes: `protocol.attest.attestation_bytes`. Blob, chunk size and index are known from the context.
    """

    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signer: Membership
    signature: Signature


# --- agent -> tracker ---------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First message of an agent. `proof` signs `protocol.attest.hello_bytes(challenge nonce)` with the node's key."""

    version: int
    node: NodeId
    proof: Signature
    name: Annotated[str, Meta(max_length=255)]
    host: Annotated[str, Meta(max_length=255)]  # where peers reach this agent; empty: the address seen by the tracker
    port: Annotated[int, Meta(ge=1, le=65535)]
    labels: Labels = {}


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


class Returned(Message, frozen=True):
    """Answer to Recall: the lone lease is over; `have` is what was read (bitmap, little endian)."""

    digest: DigestText
    have: Annotated[bytes, Meta(max_length=limits.MAX_CHUNKS // 8)]


class Done(Message, frozen=True):
    """The whole digest is proved; this node now holds it."""

    digest: DigestText


class Leave(Message, frozen=True):
    """No longer wants (cancelled) this blob."""

    digest: DigestText


class Dead(Message, frozen=True):
    """A transfer from `peer` was silent for too long and its link was dropped."""

    peer: NodeId


class Miss(Message, frozen=True):
    """Nothing came for a while and no neighbour has these chunks."""

    digest: DigestText
    indexes: Annotated[list[Index], Meta(max_length=256)]


class More(Message, frozen=True):
    """Wants up to `count` more neighbours for this blob."""

    digest: DigestText
    count: Annotated[int, Meta(ge=1, le=limits.MAX_NEIGHBOURS)]


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


class Settled(Message, frozen=True):
    """Answer to Search: the digest holds now, and these chunks were false."""

    digest: DigestText
    chunk_size: Annotated[int, Meta(ge=limits.MIN_CHUNK, le=limits.MAX_CHUNK)]
    indexes: Annotated[list[Index], Meta(max_length=limits.MAX_SUSPECTS)]


class Ask(Message, frozen=True):
    """Small content by key, answered by Content, Fetch or Absent with the same `id`.

    Keys: `tag REGISTRY/NAME:TAG`, `manifest REGISTRY/NAME@DIGEST`, `blob REGISTRY/NAME@DIGEST`.
    """

    id: int
    key: Key


class Offer(Message, frozen=True):
    """What a Fetch brought: the answer for everyone who asked for `key`. Empty `data`: too large to hold."""

    key: Key
    digest: DigestText
    media_type: Annotated[str, Meta(max_length=255)]
    size: Size
    data: Annotated[bytes, Meta(max_length=limits.SMALL_CONTENT)] = b""


class Refuse(Message, frozen=True):
    """A Fetch failed. `final`: the upstream says missing (404) or forbidden (401, 403)."""

    key: Key
    status: int
    final: bool
    retry_after: float = 0.0


class Ping(Message, frozen=True):
    """Keeps the session alive; answered by Pong. Sent every third of Welcome.session_timeout."""


class Preheated(Message, frozen=True):
    """How far a Preheat is; sent when it changes, at most about once a second. Sizes in bytes."""

    id: JobId
    state: Literal["waiting", "pulling", "done", "failed"]
    digest: Annotated[str, Meta(max_length=135)] = ""  # what the reference names; empty: not known yet
    blobs_done: Annotated[int, Meta(ge=0)] = 0
    blobs: Annotated[int, Meta(ge=0)] = 0
    size_done: Annotated[int, Meta(ge=0)] = 0
    size: Annotated[int, Meta(ge=0)] = 0
    error: Annotated[str, Meta(max_length=512)] = ""


# --- tracker -> agent ---------------------------------------------------------------------------------------------


class Challenge(Message, frozen=True):
    """First message of the tracker."""

    version: int
    nonce: Annotated[bytes, Meta(min_length=16, max_length=64)]


class Welcome(Message, frozen=True):
    """The agent is a member. `cluster_key`: Ed25519 public key that signs memberships."""

    membership: Membership
    cluster_key: NodeId
    session_timeout: float  # seconds of silence after which the tracker drops the session
    nodes: int


class Rejected(Message, frozen=True):
    """The tracker refuses the session or a request; says why. The connection is closed after it."""

    reason: str


class PeerInfo(msgspec.Struct, frozen=True, array_like=True):
    """Where a peer is reached. `site`: of a gateway of another site than the receiver's, which is reached as one.

    `zone`: chunks are fetched from another zone than one's own only under leases; empty: it is in none.
    `blob`: what that gateway and the receiver carry between their sites.
    """

    node: NodeId
    host: str
    port: int
    site: str = ""
    zone: str = ""
    blob: str = ""


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


class Recall(Message, frozen=True):
    """Others joined: finish the chunk at hand, stop the lone stream and answer Returned."""

    digest: DigestText


class Throttle(Message, frozen=True):
    """The upstream asked for a pause: start no read from `registry` for `seconds`."""

    registry: str
    seconds: float


class Gone(Message, frozen=True):
    """The upstream says that this blob is missing (404) or forbidden (401, 403); the swarm is over."""

    digest: DigestText
    status: int


class Content(Message, frozen=True):
    """Answer to Ask. `data` empty though `size` > 0: held by nobody here, fetch it by its digest."""

    id: int
    key: Key
    digest: DigestText
    media_type: str
    size: Size
    data: bytes = b""
    stale: bool = False  # older than the refresh interval, given because the upstream can't be reached


class Fetch(Message, frozen=True):
    """Answer to Ask: you hold the lease to read `key` from upstream; answer with Offer or Refuse."""

    id: int
    key: Key


class Absent(Message, frozen=True):
    """Answer to Ask: the upstream refused whoever read it for the cluster."""

    id: int
    key: Key
    status: int
    final: bool = True


class Banned(Message, frozen=True):
    """This peer is shut out of the cluster: drop its links, refuse its chunks and attestations."""

    node: NodeId
    until: int


class Show(Message, frozen=True):
    """Answer to Convict: send `length` bytes of the blob from `offset` on, to be hashed; all of it, piece by piece."""

    digest: DigestText
    offset: Size
    length: Annotated[int, Meta(ge=1, le=limits.PIECE_SHOWN)]


class Search(Message, frozen=True):
    """Answer to Doubts: it is this node's turn to read again what others attested, and to say Settled."""

    digest: DigestText


class Suspects(Message, frozen=True):
    """Answer to Doubts: a node that has the blob whole by now says that these chunks were false."""

    digest: DigestText
    chunk_size: int
    indexes: Annotated[list[Index], Meta(max_length=limits.MAX_SUSPECTS)]


class Pong(Message, frozen=True):
    """Answer to Ping."""

    nodes: int


class Preheat(Message, frozen=True):
    """Pull this image as if a daemon had asked, and say how it goes; said again to a node that comes back.

    `platforms`: as OS/ARCHITECTURE[/VARIANT] texts; none: this node's own. `keep`: seconds for which it is not to be
    evicted afterwards, 0: no matter. There are never credentials in it: the node uses its own.
    """

    id: JobId
    reference: Annotated[str, Meta(max_length=limits.MAX_KEY)]
    platforms: Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(max_length=limits.MAX_PLATFORMS)] = []
    keep: Annotated[int, Meta(ge=0)] = 0


class CancelPreheat(Message, frozen=True):
    """Stop that Preheat, whatever it has come to; what is stored stays."""

    id: JobId


class Denied(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the deny list: a digest, a reference with a tag, or a pattern of repositories; and why."""

    subject: Annotated[str, Meta(max_length=limits.MAX_KEY)]
    why: Annotated[str, Meta(max_length=limits.MAX_WHY)]


class DenyList(Message, frozen=True):
    """What no node may give to a daemon or a peer: after Welcome the whole list, in parts.

    With the part that is `final` the list replaces the one before, also one that is kept on disk.
    """

    entries: Annotated[list[Denied], Meta(max_length=limits.MAX_DENIED_PER_MESSAGE)]
    final: bool = True


class DenyChange(Message, frozen=True):
    """What has come to the list, and the subjects that are off it."""

    added: Annotated[list[Denied], Meta(max_length=limits.MAX_DENIED_PER_MESSAGE)]
    removed: Annotated[
        list[Annotated[str, Meta(max_length=limits.MAX_KEY)]], Meta(max_length=limits.MAX_DENIED_PER_MESSAGE)
    ] = []


FromAgent = (
    Hello | Holds | Drops | Join | Half | Got | Failed | Returned | Done | Leave | Dead | Miss | More | Accuse
    | Ask | Offer | Refuse | Ping | Convict | Shown | Doubts | Settled | Preheated
)  # fmt: skip
FromTracker = (
    Challenge | Welcome | Rejected | Joined | Neighbours | Lease | Recall | Throttle | Gone | Content | Fetch
    | Absent | Banned | Pong | Show | Search | Suspects | Preheat | CancelPreheat | DenyList | DenyChange
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_from_agent = msgspec.msgpack.Decoder(Annotated[list[FromAgent], Meta(max_length=limits.MAX_FRAME_MESSAGES)])
_from_tracker = msgspec.msgpack.Decoder(Annotated[list[FromTracker], Meta(max_length=limits.MAX_FRAME_MESSAGES)])


def encode(messages: list[FromAgent] | list[FromTracker]) -> bytes:
    """One frame."""
    return _encoder.encode(messages)


def decode_from_agent(frame: bytes) -> list[FromAgent]:
    """The messages of a frame that an agent sent; ProtocolError if it is not one."""
    return _decode(_from_agent, frame)


def decode_from_tracker(frame: bytes) -> list[FromTracker]:
    """The messages of a frame that a tracker sent; ProtocolError if it is not one."""
    return _decode(_from_tracker, frame)


T = TypeVar("T")


def _decode(decoder: msgspec.msgpack.Decoder[list[T]], frame: bytes) -> list[T]:
    if len(frame) > limits.MAX_TRACKER_FRAME:
        raise ProtocolError(f"a frame of {len(frame)} bytes; at most {limits.MAX_TRACKER_FRAME} are taken")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a frame of this protocol: {error}") from error
