"""Small content shared by the cluster: asked for by key, read from upstream by one node for all.

The tracker is believed in which digest a tag has, and in nothing else: bytes are proved against it.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from p2pdist.errors import InvalidDigest, TrackerError, UpstreamDenied, UpstreamError, UpstreamNotFound
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.limits import SMALL_CONTENT

_log = structlog.get_logger("p2pdist.pull")


class Cluster(Protocol):
    """The session with the tracker, as far as small content needs it."""

    @property
    def connected(self) -> bool:
        """A session is open."""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message."""

    async def ask(self, key: str, timeout: float) -> wire.Content | wire.Fetch | wire.Absent:
        """Small content by key; TrackerError when no answer comes."""


class SharedContent:
    """Asks, and answers for the others where this node was told to fetch. `seconds`: how long an answer may take."""

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        self._cluster = cluster
        self._seconds = seconds

    @property
    def connected(self) -> bool:
        """A tracker is there."""
        return self._cluster.connected

    async def ask(self, key: str, digest: Digest | None) -> wire.Content | wire.Fetch | None:
        """The cluster's answer; None: ask the upstream. `digest`: what the content must have, None for a tag.

        UpstreamNotFound if the upstream told the cluster so.
        """
        if not self._cluster.connected:
            return None
        try:
            answer = await self._cluster.ask(key, self._seconds)
        except TrackerError as error:
            _log.info("the tracker did not answer, asking the upstream", key=key, error=str(error))
            return None
        if isinstance(answer, wire.Fetch):
            return answer
        if isinstance(answer, wire.Content):
            return answer if _believable(answer, key, digest) else None
        if answer.final and answer.status not in (401, 403):
            raise UpstreamNotFound(f"{key}: the upstream answers {answer.status}", status=answer.status)
        return None  # others could not get it: this node's way and credentials may be better ones

    def offer(self, key: str, digest: Digest, media_type: str, data: bytes, *, whole: bool = True) -> None:
        """What a Fetch brought; where it is not `whole` or too large, the others learn no more than its digest."""
        held = data if whole and len(data) <= SMALL_CONTENT else b""
        self._cluster.send(wire.Offer(key, str(digest), media_type, len(data), held))

    def refuse(self, key: str, error: UpstreamError) -> None:
        """A Fetch failed."""
        status = error.status or (404 if isinstance(error, UpstreamNotFound) else 0)
        final = isinstance(error, (UpstreamNotFound, UpstreamDenied))
        self._cluster.send(wire.Refuse(key, status, final, error.retry_after or 0.0))


def _believable(content: wire.Content, key: str, digest: Digest | None) -> bool:
    """Whether the answer is for what was asked, and its bytes are what it says."""
    try:
        named = Digest.parse(content.digest)
    except InvalidDigest as error:
        _log.warning("the tracker's answer is not believed", key=key, error=str(error))
        return False
    got = Digest.of(content.data, named.algorithm) if content.data else named
    if digest not in (None, named) or got != named:
        _log.warning("the tracker's answer is not believed", key=key, digest=content.digest, got=str(got))
        return False
    return True
