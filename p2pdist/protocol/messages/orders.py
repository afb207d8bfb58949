"""What operators ask of all nodes: preheats, and the deny list."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pdist.protocol import limits
from p2pdist.protocol.messages.fields import JobId, Message


class Preheat(Message, frozen=True):
    """Pull this image as if a daemon had asked, and say how it goes; said again to a node that comes back.

    `platforms`: as OS/ARCHITECTURE[/VARIANT] texts; none: this node's own. `keep`: seconds for which it is not to be
    evicted afterwards, 0: no matter. There are never credentials in it: the node uses its own.
    """

    id: JobId
    reference: Annotated[str, Meta(max_length=limits.MAX_KEY)]
    platforms: Annotated[list[Annotated[str, Meta(max_length=100)]], Meta(max_length=limits.MAX_PLATFORMS)] = []
    keep: Annotated[int, Meta(ge=0)] = 0


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
