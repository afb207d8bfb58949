"""Signatures read once per cluster: signature manifests and payloads travel the way of all small content.

What is immutable (a manifest or blob by digest) comes through the cluster; whether there is a signature at all (a tag,
a listing of referrers) is asked at the origin, through the one node per interval that resolves a tag for all. Each
node judges for itself; the caller checks every digest.
"""

from __future__ import annotations

import aiohttp

from p2pdist.errors import InvalidManifest, UpstreamInvalid, UpstreamNotFound
from p2pdist.oci import Digest, Repository
from p2pdist.protocol.limits import SMALL_CONTENT
from p2pdist.proxies import Proxies
from p2pdist.pull import Pull
from p2pdist.trust import ReferrersPage, SignatureSource, UpstreamSource, page_of
from p2pdist.upstream import Upstreams


class SharedSource:
    """A `trust.SignatureSource` over the agent's own pull; GPG stores are reached through `proxies`."""

    def __init__(self, upstreams: Upstreams, session: aiohttp.ClientSession, pull: Pull, proxies: Proxies) -> None:
        self._origin = UpstreamSource(upstreams, session, proxies=proxies)
        self._pull = pull

    def on_behalf_of(self, authorization: str) -> SignatureSource:
        """A client's own credentials see what others may not: nothing of it is shared."""
        return self._origin.on_behalf_of(authorization)

    async def manifest(self, repository: Repository, target: str, limit: int) -> bytes | None:
        """See SignatureSource."""
        try:
            found = await self._pull.ungated_manifest(repository, target)
        except UpstreamNotFound:
            return None
        except InvalidManifest as error:
            raise UpstreamInvalid(f"{repository}: {target}: {error}") from error
        if len(found.raw) > limit:
            raise UpstreamInvalid(f"{repository}: {target} has {len(found.raw)} bytes; at most {limit} are read")
        return found.raw

    async def blob(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See SignatureSource."""
        if size > SMALL_CONTENT:
            return await self._origin.blob(repository, digest, size)
        if self._pull.store.find(digest) is None:
            await self._pull.small(repository, digest, size)
        stored = await self._pull.store.open_blob(digest)
        if stored is None:
            return await self._origin.blob(repository, digest, size)
        with stored:
            return stored.pread(0, min(size, stored.size))

    async def referrers(
        self, repository: Repository, digest: Digest, page: str | None, limit: int
    ) -> ReferrersPage | None:
        """See SignatureSource."""
        if page is not None:
            return await self._origin.referrers(repository, digest, page, limit)
        try:
            return page_of(await self._pull.ungated_referrers(repository, digest), repository, limit)
        except UpstreamNotFound:
            return None

    async def lookaside(self, base: str, path: str, limit: int) -> bytes | None:
        """See SignatureSource."""
        return await self._origin.lookaside(base, path, limit)
