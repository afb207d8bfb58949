"""The door behind the mirror: what is on the deny list gets no further, and what daemons ask for is noted as running.

A `mirror.source.Source` around another one.
"""

from __future__ import annotations

from p2pdist.denylist import DenyList
from p2pdist.errors import P2pdistError
from p2pdist.oci import Digest, Repository, parse_manifest
from p2pdist.pull import FoundManifest, Handle, Pull
from p2pdist.retention import Retention
from p2pdist.upstream import RawAnswer


class Guard:
    """`running`: whether who asks is a daemon, whose images count as running."""

    def __init__(self, pull: Pull, denied: DenyList, retention: Retention, *, running: bool) -> None:
        self._pull = pull
        self._denied = denied
        self._retention = retention
        self._running = running

    async def manifest(self, repository: Repository, target: str, *, authorization: str | None = None) -> FoundManifest:
        """See `mirror.source.Source`."""
        # A denied tag is looked up all the same: what it names is to be refused by its digest as well.
        digest = Digest.parse(target) if ":" in target else None
        self._denied.admit(repository, None, digest)
        try:
            found = await self._pull.manifest(repository, target, authorization=authorization)
        except P2pdistError:
            self._denied.admit(repository, target, digest)
            raise
        parsed = parse_manifest(found.raw, found.media_type, found.digest.algorithm)
        self._denied.admit_manifest(repository, target, parsed)
        self._retention.passed(repository, target, parsed, pulled=self._running)
        return found

    async def blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> Handle:
        """See `mirror.source.Source`."""
        self._denied.admit(repository, None, digest)
        return await self._pull.blob(repository, digest, authorization=authorization)

    async def blob_info(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> int:
        """See `mirror.source.Source`."""
        self._denied.admit(repository, None, digest)
        return await self._pull.blob_info(repository, digest, authorization=authorization)

    async def referrers(
        self, repository: Repository, digest: Digest, artifact_type: str | None, *, authorization: str | None = None
    ) -> RawAnswer:
        """See `mirror.source.Source`."""
        return await self._pull.referrers(repository, digest, artifact_type, authorization=authorization)

    async def tags_list(self, repository: Repository, query: str, *, authorization: str | None = None) -> RawAnswer:
        """See `mirror.source.Source`."""
        return await self._pull.tags_list(repository, query, authorization=authorization)
