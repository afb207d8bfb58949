"""What refers to a digest: asked at the origin by one node per interval for all, as what a tag points to is."""

from __future__ import annotations

from p2pdist.errors import UpstreamError
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.pull.cluster import SharedContent
from p2pdist.upstream import RawAnswer, Upstreams


class Listings:
    """First pages of referrers. One that has a next page, or is large, each node asks for itself."""

    def __init__(self, upstreams: Upstreams, shared: SharedContent) -> None:
        self._upstreams = upstreams
        self._shared = shared

    async def find(self, repository: Repository, digest: Digest) -> RawAnswer:
        """All artifact types, as old as a tag's answer may be. UpstreamNotFound also where there is no such API."""
        registry = self._upstreams.registry(repository.registry)
        # No tag has an @ in it; to the tracker this is one more tag, whose answer grows old in the same time.
        key = f"tag {repository}:@{digest}"
        answer = await self._shared.ask(key, None)
        if isinstance(answer, wire.Content) and answer.data and not answer.stale:
            return RawAnswer(200, answer.media_type, answer.data, {})
        try:
            found = await registry.referrers(repository, digest, None)
        except UpstreamError as error:
            if isinstance(answer, wire.Fetch):
                self._shared.refuse(key, error)
            raise
        if isinstance(answer, wire.Fetch):
            self._shared.offer(
                key, Digest.of(found.body), found.media_type, found.body, whole="Link" not in found.headers
            )
        return found
