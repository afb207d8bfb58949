"""What messages are made of: the base of all, and fields with their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

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
