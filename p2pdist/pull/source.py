"""The mirror's `Source`: who asks is admitted, what is asked for is sent its way."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from p2pdist.errors import UpstreamInvalid
from p2pdist.oci import Digest, Repository, parse_manifest
from p2pdist.pull.cluster import Cluster, SharedContent
from p2pdist.pull.flights import Flights
from p2pdist.pull.handle import Handle
from p2pdist.pull.listings import Listings
from p2pdist.pull.manifests import FoundManifest, Manifests
from p2pdist.pull.rights import Rights
from p2pdist.pull.settings import PullSettings
from p2pdist.pull.small import SmallBlobs
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.plan import Plans, plan_of_blob
from p2pdist.swarm.service import SwarmService
from p2pdist.swarm.transfers import Transfer
from p2pdist.trust import Gate, OpenGate
from p2pdist.upstream import RawAnswer, Upstreams

_MEMBERS = 4096  # blobs remembered that the upstream found in a repository, besides those that a manifest names


class Pull:
    """See the package; the methods are those of `mirror.source.Source`."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        swarms: SwarmService,
        cluster: Cluster,
        settings: PullSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gate: Gate = OpenGate()
        self._store = store
        self._upstreams = upstreams
        self._swarms = swarms
        self._scope = Scope()
        self._plans = Plans()
        shared = SharedContent(cluster, settings.ask_seconds)
        self._small = SmallBlobs(store, upstreams, swarms, shared, self._scope)
        self._listings = Listings(upstreams, shared)
        quick = SharedContent(cluster, settings.rights_ask_seconds)
        self.rights = Rights(upstreams, quick, self._scope, settings, clock)
        self._members: OrderedDict[tuple[Repository, Digest], int] = OrderedDict()
        self._asking: Flights[int] = Flights(self._scope)
        self._manifests = Manifests(
            store,
            upstreams,
            swarms,
            shared,
            self._plans,
            self._scope,
            settings.tag_seconds,
            clock,
            self.rights.accept,
        )

    async def start(self) -> None:
        """Ready for requests."""
        await self._scope.start()
        await self.rights.load()

    async def stop(self) -> None:
        """End what is under way."""
        await self._scope.stop()
        await self.rights.save()

    @property
    def store(self) -> Store:
        """Where finished blobs are."""
        return self._store

    # --- manifests -----------------------------------------------------------------------------------------------

    async def manifest(self, repository: Repository, target: str, *, authorization: str | None = None) -> FoundManifest:
        """See `mirror.source.Source`."""
        if ":" in target:  # a digest: what signs it can be fetched beside it
            ahead = self.gate.prefetch(repository, target, Digest.parse(target), authorization=authorization)
            self._scope.spawn(ahead)
        self._upstreams.registry(repository.registry)  # refuses what is not allowed before anything is asked
        self.rights.ahead(repository, target, authorization)
        found = await self.ungated_manifest(repository, target, authorization=authorization)
        await self.rights.admit_manifest(repository, target, authorization)
        parsed = parse_manifest(found.raw, found.media_type, found.digest.algorithm)
        await self.gate.admit_manifest(repository, target, parsed, authorization=authorization)
        return found

    async def ungated_manifest(
        self, repository: Repository, target: str, *, authorization: str | None = None
    ) -> FoundManifest:
        """The manifest whatever the policy says of it: for what judges it, and for prefetching. Single flight."""
        return await self._manifests.find(repository, target, authorization)

    async def ungated_referrers(self, repository: Repository, digest: Digest) -> RawAnswer:
        """The first page of what refers to `digest`, for what judges images by it; see Listings."""
        return await self._listings.find(repository, digest)

    # --- blobs ---------------------------------------------------------------------------------------------------

    async def blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> Handle:
        """See `mirror.source.Source`."""
        size = await self.blob_info(repository, digest, authorization=authorization)
        if authorization is not None:
            self._upstreams.registry(repository.registry).lend(repository, authorization)
        handle = Handle(self, repository, digest, size)
        handle.begin()
        return handle

    async def blob_info(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> int:
        """See `mirror.source.Source`."""
        self._upstreams.registry(repository.registry)  # refuses what is not allowed before anything is asked
        size = self._size(repository, digest)
        if size is not None:
            await self.rights.admit_blob(repository, digest, authorization)
        await self.gate.revive_blob(repository, digest, authorization=authorization)
        self.gate.admit_blob(repository, digest)
        if size is not None:
            return size
        key = f"{repository}@{digest} {authorization or ''}"
        return await self._asking.join(key, lambda: self._ask_size(repository, digest, authorization))

    def _size(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob that is known to be of this repository.

        That it is in the store says nothing: it may be of another one, which this client may not read.
        """
        size = self._plans.size(repository, digest)
        if size is None:
            size = self._members.get((repository, digest))
        stored = self._store.find(digest) if size is not None else None
        return stored.size if stored is not None else size

    async def _ask_size(self, repository: Repository, digest: Digest, authorization: str | None) -> int:
        registry = self._upstreams.registry(repository.registry)
        size = await registry.head_blob(repository, digest, authorization=authorization)
        self.rights.accept(repository, authorization)
        stored = self._store.find(digest)
        if size is None and stored is not None:
            size = stored.size
        if size is None:
            raise UpstreamInvalid(f"the upstream does not say how long {digest} is")
        self._members[repository, digest] = size
        while len(self._members) > _MEMBERS:
            self._members.popitem(last=False)
        return size

    def transfer(self, repository: Repository, digest: Digest, size: int) -> Transfer:
        """The running or new transfer of a large blob that is not stored."""
        plan = self._plans.find(repository, digest) or plan_of_blob(repository, digest, size)
        return self._swarms.want(plan, digest)

    async def small(self, repository: Repository, digest: Digest, size: int) -> None:
        """Bring a blob of up to 64 KiB into the store, single flight."""
        await self._small.bring(repository, digest, size)

    # --- passed on -----------------------------------------------------------------------------------------------

    async def referrers(
        self, repository: Repository, digest: Digest, artifact_type: str | None, *, authorization: str | None = None
    ) -> RawAnswer:
        """See `mirror.source.Source`."""
        registry = self._upstreams.registry(repository.registry)
        return await registry.referrers(repository, digest, artifact_type, authorization=authorization)

    async def tags_list(self, repository: Repository, query: str, *, authorization: str | None = None) -> RawAnswer:
        """See `mirror.source.Source`."""
        return await self._upstreams.registry(repository.registry).tags_list(
            repository, query, authorization=authorization
        )
