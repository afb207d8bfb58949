"""Frames: arrays of messages, and which of them go in which direction."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits
from p2pdist.protocol.messages.content import Absent, Ask, Content, Fetch, Offer, Refuse
from p2pdist.protocol.messages.orders import CancelPreheat, DenyChange, DenyList, Preheat, Preheated
from p2pdist.protocol.messages.session import Banned, Challenge, Dead, Hello, Ping, Pong, Rejected, Welcome
from p2pdist.protocol.messages.swarms import (
    Done,
    Drops,
    Failed,
    Gone,
    Got,
    Half,
    Holds,
    Join,
    Joined,
    Lease,
    Leave,
    Miss,
    More,
    Neighbours,
    Recall,
    Returned,
    Throttle,
)
from p2pdist.protocol.messages.trials import Accuse, Convict, Doubts, Search, Settled, Show, Shown, Suspects

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
