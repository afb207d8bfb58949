"""What replicas say to each other: one WebSocket, binary frames, each frame a msgpack array of these.

Only replicas get here (certificates of the tracker's role), so there are bounds on sizes, and none on counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits
from p2pdist.protocol.messages import FromAgent, FromTracker, NodeId
from tracker.replicas.guests import Guest

VERSION = 1
MAX_FRAME = 2 * limits.MAX_TRACKER_FRAME  # an agent's largest frame fits in


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True, omit_defaults=True):
    pass


class Greet(_Message, frozen=True):
    """First message of who opens a link. `term`: 0, to follow; otherwise it leads itself and asks who yields."""

    version: int
    replica: str
    address: str
    term: int = 0


class Replica(msgspec.Struct, frozen=True, array_like=True):
    """One that is linked, and where it is reached."""

    id: str
    address: str


class Leads(_Message, frozen=True):
    """The answer of the leader: the link stands. Again whenever its term or the list of replicas changes."""

    replica: str
    term: int
    replicas: list[Replica]


class Elsewhere(_Message, frozen=True):
    """The answer of another one: who leads as far as it knows (term 0: nobody), and that it is alive itself."""

    replica: str
    address: str = ""
    term: int = 0


class Came(_Message, frozen=True):
    """An agent's session begins at the follower; an older one of its node is over."""

    guest: Guest


class Said(_Message, frozen=True):
    """What an agent said."""

    node: NodeId
    messages: list[FromAgent]


class Went(_Message, frozen=True):
    """An agent's session is over."""

    node: NodeId


class Tell(_Message, frozen=True):
    """What an agent is to be told."""

    node: NodeId
    messages: list[FromTracker]


class End(_Message, frozen=True):
    """An agent's session is to be ended: it has another one elsewhere."""

    node: NodeId
    reason: str


class Beat(_Message, frozen=True):
    """Twice a second, both ways: this side is alive. `nodes`: agents it knows of."""

    nodes: int


ToLeader = Greet | Came | Said | Went | Beat
ToFollower = Leads | Elsewhere | Tell | End | Beat

_encoder = msgspec.msgpack.Encoder()
_to_leader = msgspec.msgpack.Decoder(list[ToLeader])
_to_follower = msgspec.msgpack.Decoder(list[ToFollower])
T = TypeVar("T")


def frames(batch: Sequence[ToLeader | ToFollower]) -> Iterator[bytes]:
    """The batch as frames below the limit; a message that is longer by itself goes alone."""
    frame = _encoder.encode(batch)
    if len(frame) <= limits.MAX_TRACKER_FRAME or len(batch) == 1:
        yield frame
        return
    middle = len(batch) // 2
    yield from frames(batch[:middle])
    yield from frames(batch[middle:])


def decode_to_leader(frame: bytes) -> list[ToLeader]:
    """What a follower sent; ProtocolError if it is none of it."""
    return _decode(_to_leader, frame)


def decode_to_follower(frame: bytes) -> list[ToFollower]:
    """What a leader sent; ProtocolError if it is none of it."""
    return _decode(_to_follower, frame)


def _decode(decoder: msgspec.msgpack.Decoder[list[T]], frame: bytes) -> list[T]:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a frame between replicas of version {VERSION}: {error}") from error
