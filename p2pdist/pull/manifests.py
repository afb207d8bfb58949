"""Manifests by tag and by digest: from the store, from the cluster, from the upstream; each with its digest proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from p2pdist.errors import DigestMismatch, InvalidDigest, InvalidManifest, StorageError, UpstreamError
from p2pdist.oci import Digest, Manifest, Repository, parse_manifest
from p2pdist.protocol import messages as wire
from p2pdist.pull.cluster import SharedContent
from p2pdist.pull.flights import Flights
from p2pdist.pull.settings import PAUSE
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.plan import Plans
from p2pdist.swarm.service import SwarmService
from p2pdist.upstream import Upstreams

_log = structlog.get_logger("p2pdist.pull")


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A manifest whose digest is proved; whether it may be served is the gate's to say."""

    raw: bytes
    media_type: str
    digest: Digest


class Manifests:
    """`tag_seconds`: with no tracker, a tag is asked for upstream at most this often. `clock` gives Unix seconds.

    `accepted` hears of every repository that the upstream opened, and to which Authorization (None: the node's own).
    """

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        swarms: SwarmService,
        shared: SharedContent,
        plans: Plans,
        scope: Scope,
        tag_seconds: float,
        clock: Callable[[], float],
        accepted: Callable[[Repository, str | None], None],
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._swarms = swarms
        self._shared = shared
        self._plans = plans
        self._tag_seconds = tag_seconds
        self._clock = clock
        self._accepted = accepted
        self._flights: Flights[FoundManifest] = Flights(scope)

    async def find(self, repository: Repository, target: str, authorization: str | None) -> FoundManifest:
        """By tag or digest; single flight. UpstreamError, InvalidManifest."""
        self._upstreams.registry(repository.registry)  # refuses what is not allowed before anything is asked
        key = f"{repository} {target} {authorization or ''}"
        return await self._flights.join(key, lambda: self._find(repository, target, authorization))

    async def _find(self, repository: Repository, target: str, authorization: str | None) -> FoundManifest:
        try:
            digest = Digest.parse(target)
        except InvalidDigest:
            found = await self._tagged(repository, target, authorization)
        else:
            key = f"manifest {repository}@{digest}"
            found = await self._stored(repository, digest) or await self._fetch(
                key, repository, target, digest, authorization
            )
        parsed = parse_manifest(found.raw, found.media_type, found.digest.algorithm)
        if isinstance(parsed, Manifest):
            self._plans.learn(repository, parsed)
        return found

    async def _tagged(self, repository: Repository, tag: str, authorization: str | None) -> FoundManifest:
        known = self._store.tag(str(repository), tag)
        fresh = known is not None and self._clock() - known[1] < self._tag_seconds
        try:
            if known is not None and fresh and not self._shared.connected:
                return await self.find(repository, known[0], authorization)
            found = await self._fetch(f"tag {repository}:{tag}", repository, tag, None, authorization)
        except UpstreamError as error:
            if known is None or not error.temporary:
                raise
            stored = await self._stored(repository, Digest.parse(known[0]))
            if stored is None:
                raise
            _log.warning("the upstream can't be reached: the last known digest is served", tag=f"{repository}:{tag}")
            return stored
        self._store.set_tag(str(repository), tag, str(found.digest), self._clock())
        return found

    async def _stored(self, repository: Repository, digest: Digest) -> FoundManifest | None:
        media_type = self._store.media_type(digest)
        if media_type is None or str(repository) not in self._store.repositories(digest):
            return None
        blob = await self._store.open_blob(digest)
        if blob is None:
            return None
        with blob:
            return FoundManifest(blob.pread(0, blob.size), media_type, digest)

    async def _fetch(
        self, key: str, repository: Repository, target: str, digest: Digest | None, authorization: str | None
    ) -> FoundManifest:
        answer = await self._shared.ask(key, digest) if authorization is None else None
        if isinstance(answer, wire.Content):
            found = await self._from_content(repository, answer, digest)
            if found is not None:
                return found
        registry = self._upstreams.registry(repository.registry)
        try:
            fetched = await registry.get_manifest(repository, target, authorization=authorization, patience=PAUSE)
        except UpstreamError as error:
            if isinstance(answer, wire.Fetch):
                self._shared.refuse(key, error)
                stale = await self._stale(key, repository, digest) if error.temporary else None
                if stale is not None:
                    return stale
            raise
        self._accepted(repository, authorization)
        if isinstance(answer, wire.Fetch):
            self._shared.offer(key, fetched.digest, fetched.media_type, fetched.raw)
        return await self._keep(repository, fetched.raw, fetched.media_type, fetched.digest)

    async def _stale(self, key: str, repository: Repository, digest: Digest | None) -> FoundManifest | None:
        """Somebody may have an older answer."""
        answer = await self._shared.ask(key, digest)
        return await self._from_content(repository, answer, digest) if isinstance(answer, wire.Content) else None

    async def _from_content(
        self, repository: Repository, content: wire.Content, digest: Digest | None
    ) -> FoundManifest | None:
        """The manifest of a believable answer; None where it holds only the digest and that is what was asked for."""
        named = Digest.parse(content.digest)
        if content.data:
            try:
                return await self._keep(repository, content.data, content.media_type, named)
            except InvalidManifest as error:
                _log.warning("the tracker's answer is no manifest", digest=str(named), error=str(error))
                return None
        return await self.find(repository, str(named), None) if digest is None else None

    async def _keep(self, repository: Repository, raw: bytes, media_type: str, digest: Digest) -> FoundManifest:
        parse_manifest(raw, media_type, digest.algorithm)
        try:
            stored = await self._store.put(raw, digest)
            self._store.note(digest, str(repository), media_type)
            self._swarms.stored(stored)
        except DigestMismatch:
            raise
        except StorageError as error:
            _log.warning("a manifest is passed through without being stored", error=str(error))
        return FoundManifest(raw, media_type, digest)
