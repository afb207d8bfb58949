"""Blobs of up to 64 KiB: inside the tracker's answers, or by one read from upstream; no swarm."""

from __future__ import annotations

from p2pdist.errors import UpstreamError, UpstreamInvalid
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.pull.cluster import SharedContent
from p2pdist.pull.flights import Flights
from p2pdist.pull.settings import PAUSE
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.service import SwarmService
from p2pdist.upstream import Upstreams


class SmallBlobs:
    """Brings them into the store."""

    def __init__(
        self, store: Store, upstreams: Upstreams, swarms: SwarmService, shared: SharedContent, scope: Scope
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._swarms = swarms
        self._shared = shared
        self._flights: Flights[None] = Flights(scope)

    async def bring(self, repository: Repository, digest: Digest, size: int) -> None:
        """It is in the store afterwards; single flight. UpstreamError, StorageError."""
        await self._flights.join(f"{repository}@{digest}", lambda: self._bring(repository, digest, size))

    async def _bring(self, repository: Repository, digest: Digest, size: int) -> None:
        key = f"blob {repository}@{digest}"
        answer = await self._shared.ask(key, digest)
        if isinstance(answer, wire.Content) and answer.data:
            data = answer.data
        else:
            try:
                data = await self._read(repository, digest, size)
            except UpstreamError as error:
                if isinstance(answer, wire.Fetch):
                    self._shared.refuse(key, error)
                raise
            if isinstance(answer, wire.Fetch):
                self._shared.offer(key, digest, "application/octet-stream", data)
        self._swarms.stored(await self._store.put(data, digest))

    async def _read(self, repository: Repository, digest: Digest, size: int) -> bytes:
        registry = self._upstreams.registry(repository.registry)
        data = bytearray()
        async with registry.read_blob(repository, digest, size=size, patience=PAUSE) as body:
            async for piece in body:
                data += piece
                self._swarms.count_upstream(len(piece))
                if len(data) > size:
                    raise UpstreamInvalid(f"{digest} is longer than the {size} bytes its manifest says")
        got = Digest.of(bytes(data), digest.algorithm)
        if got != digest:
            raise UpstreamInvalid(f"the upstream sent {got} ({len(data)} bytes) for {digest}")
        return bytes(data)
