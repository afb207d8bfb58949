"""Small content by key: tags, manifests and small blobs, read from upstream by one node for all."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2pdist.protocol import limits
from p2pdist.protocol.messages.fields import DigestText, Key, Message, Size


class Ask(Message, frozen=True):
    """Small content by key, answered by Content, Fetch or Absent with the same `id`.

    Keys: `tag REGISTRY/NAME:TAG`, `manifest REGISTRY/NAME@DIGEST`, `blob REGISTRY/NAME@DIGEST`.
    """

    id: int
    key: Key


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
