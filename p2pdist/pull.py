"""One manifest or blob, single flight, whoever asks: store -> cluster -> upstream -> proved -> store.

The mirror's `Source`. Manifests and small blobs come inside the tracker's answers, one node reading each from the
upstream for all; larger blobs come through the swarms of their image. With no tracker everything still works, one
verified read from upstream at a time. A client that leaves never cancels a flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from p2pdist.errors import (
    DigestMismatch,
    InvalidDigest,
    StorageError,
    TrackerError,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
)
from p2pdist.oci import Digest, Manifest, Repository, parse_manifest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_range
from p2pdist.protocol.limits import SMALL_CONTENT
from p2pdist.scope import Scope
from p2pdist.store import BlobFile, Store
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.plan import Plans, plan_of_blob
from p2pdist.swarm.service import SwarmService
from p2pdist.swarm.transfers import Transfer
from p2pdist.trust import Gate, OpenGate
from p2pdist.upstream import RawAnswer, Upstreams

_T = TypeVar("_T")
_log = structlog.get_logger("p2pdist.pull")
_PIECE = 256 * 1024
_PAUSE = 3.0  # seconds that a small read waits when the upstream asks for it (429)
_ALIVE = 5.0  # seconds without a byte after which a stream says that its source is alive
_PATIENCE = 240.0  # seconds that a stream waits for its own next chunk while its rollout moves (CRI gives up at 300)


class Cluster(Protocol):
    """The session with the tracker, as far as small content needs it."""

    @property
    def connected(self) -> bool:
        """A session is open."""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message."""

    async def ask(self, key: str, timeout: float) -> wire.Content | wire.Fetch | wire.Absent:
        """Small content by key; TrackerError when no answer comes."""


@dataclass(frozen=True, slots=True)
class PullSettings:
    """Times in seconds."""

    ask_seconds: float = 8.0  # for the tracker's answer; it includes another node's read from upstream
    tag_seconds: float = 10.0  # with no tracker, a tag is asked for upstream at most this often


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A manifest whose digest is proved; whether it may be served is the gate's to say."""

    raw: bytes
    media_type: str
    digest: Digest


class Pull:
    """See the module; the methods are those of `mirror.source.Source`."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        swarms: SwarmService,
        cluster: Cluster,
        settings: PullSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._swarms = swarms
        self._cluster = cluster
        self.gate: Gate = OpenGate()
        self._settings = settings
        self._clock = clock
        self._plans = Plans()
        self._flights: dict[str, asyncio.Future[FoundManifest]] = {}
        self._small: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Ready for requests."""
        self._scope = Scope()
        await self._scope.start()

    async def stop(self) -> None:
        """End what is under way."""
        await self._scope.stop()

    # --- manifests -----------------------------------------------------------------------------------------------

    async def manifest(self, repository: Repository, target: str, *, authorization: str | None = None) -> FoundManifest:
        """See `mirror.source.Source`."""
        if ":" in target:  # a digest: what signs it can be fetched beside it
            ahead = self.gate.prefetch(repository, target, Digest.parse(target), authorization=authorization)
            self._scope.spawn(ahead)
        found = await self.ungated_manifest(repository, target, authorization=authorization)
        parsed = parse_manifest(found.raw, found.media_type, found.digest.algorithm)
        await self.gate.admit_manifest(repository, target, parsed, authorization=authorization)
        return found

    async def ungated_manifest(
        self, repository: Repository, target: str, *, authorization: str | None = None
    ) -> FoundManifest:
        """The manifest whatever the policy says of it: for what judges it, and for prefetching. Single flight."""
        self._upstreams.registry(repository.registry)  # refuses what is not allowed before anything is asked
        key = f"{repository} {target} {authorization or ''}"
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
            self._scope.spawn(self._fly(self._flights, key, flight, self._manifest(repository, target, authorization)))
        return await asyncio.shield(flight)

    async def _fly(
        self,
        flights: dict[str, asyncio.Future[_T]],
        key: str,
        flight: asyncio.Future[_T],
        work: Awaitable[_T],
    ) -> None:
        try:
            result = await work
        except Exception as error:  # noqa: BLE001  (handed to everyone who waits)
            flight.set_exception(error)
            flight.exception()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        else:
            flight.set_result(result)
        finally:
            flights.pop(key, None)

    async def _manifest(self, repository: Repository, target: str, authorization: str | None) -> FoundManifest:
        try:
            digest: Digest | None = Digest.parse(target)
        except InvalidDigest:
            digest = None
        if digest is not None:
            found = await self._stored_manifest(repository, digest) or await self._fetch_manifest(
                f"manifest {repository}@{digest}", repository, target, digest, authorization
            )
        else:
            found = await self._tagged(repository, target, authorization)
        parsed = parse_manifest(found.raw, found.media_type, found.digest.algorithm)
        if isinstance(parsed, Manifest):
            self._plans.learn(repository, parsed)
        return found

    async def _tagged(self, repository: Repository, tag: str, authorization: str | None) -> FoundManifest:
        known = self._store.tag(str(repository), tag)
        fresh = known is not None and self._clock() - known[1] < self._settings.tag_seconds
        try:
            if known is not None and fresh and not self._cluster.connected:
                return await self.ungated_manifest(repository, known[0], authorization=authorization)
            found = await self._fetch_manifest(f"tag {repository}:{tag}", repository, tag, None, authorization)
        except UpstreamError as error:
            if known is None or not error.temporary:
                raise
            stored = await self._stored_manifest(repository, Digest.parse(known[0]))
            if stored is None:
                raise
            _log.warning("the upstream can't be reached: the last known digest is served", tag=f"{repository}:{tag}")
            return stored
        self._store.set_tag(str(repository), tag, str(found.digest), self._clock())
        return found

    async def _stored_manifest(self, repository: Repository, digest: Digest) -> FoundManifest | None:
        media_type = self._store.media_type(digest)
        if media_type is None or str(repository) not in self._store.repositories(digest):
            return None
        blob = await self._store.open_blob(digest)
        if blob is None:
            return None
        with blob:
            return FoundManifest(blob.pread(0, blob.size), media_type, digest)

    async def _fetch_manifest(
        self, key: str, repository: Repository, target: str, digest: Digest | None, authorization: str | None
    ) -> FoundManifest:
        if authorization is None:
            answer = await self._ask(key)
            if isinstance(answer, wire.Content):
                found = await self._from_content(repository, answer, digest)
                if found is not None:
                    return found
        else:
            answer = None
        registry = self._upstreams.registry(repository.registry)
        try:
            fetched = await registry.get_manifest(repository, target, authorization=authorization, patience=_PAUSE)
        except UpstreamError as error:
            if isinstance(answer, wire.Fetch):
                self._refuse(answer.key, error)
                if error.temporary:
                    again = await self._ask(key)  # somebody may have a stale answer
                    if isinstance(again, wire.Content):
                        found = await self._from_content(repository, again, digest)
                        if found is not None:
                            return found
            raise
        if isinstance(answer, wire.Fetch):
            data = fetched.raw if len(fetched.raw) <= SMALL_CONTENT else b""
            self._cluster.send(wire.Offer(key, str(fetched.digest), fetched.media_type, len(fetched.raw), data))
        return await self._keep(repository, fetched.raw, fetched.media_type, fetched.digest)

    async def _from_content(
        self, repository: Repository, content: wire.Content, digest: Digest | None
    ) -> FoundManifest | None:
        """The tracker's answer, proved; None where it holds only the digest and that is what was asked for."""
        named = Digest.parse(content.digest)
        if digest is not None and named != digest:
            raise UpstreamInvalid(f"the tracker answered {named} for {digest}")
        if content.data:
            if Digest.of(content.data, named.algorithm) != named:
                raise UpstreamInvalid(f"the tracker's bytes for {named} have another digest")
            return await self._keep(repository, content.data, content.media_type, named)
        if digest is None:
            return await self.ungated_manifest(repository, str(named))
        return None

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

    async def _ask(self, key: str) -> wire.Content | wire.Fetch | None:
        """The cluster's answer; None where there is no tracker. UpstreamError if the upstream refused the cluster."""
        if not self._cluster.connected:
            return None
        try:
            answer = await self._cluster.ask(key, self._settings.ask_seconds)
        except TrackerError as error:
            _log.info("the tracker did not answer, asking the upstream", key=key, error=str(error))
            return None
        if not isinstance(answer, wire.Absent):
            return answer
        if answer.final and answer.status not in (401, 403):
            raise UpstreamNotFound(f"{key}: the upstream answers {answer.status}", status=answer.status)
        return None  # others could not get it: this node's way and credentials may be better ones

    def _refuse(self, key: str, error: UpstreamError) -> None:
        status = error.status or (404 if isinstance(error, UpstreamNotFound) else 0)
        final = isinstance(error, (UpstreamNotFound, UpstreamDenied))
        self._cluster.send(wire.Refuse(key, status, final, error.retry_after or 0.0))

    # --- blobs ---------------------------------------------------------------------------------------------------

    async def blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> Handle:
        """See `mirror.source.Source`."""
        self._upstreams.registry(repository.registry)
        await self._admit_blob(repository, digest, authorization)
        stored = self._store.find(digest)
        size = stored.size if stored is not None else self._plans.size(repository, digest)
        if size is None:
            size = await self.blob_info(repository, digest, authorization=authorization)
        handle = Handle(self, repository, digest, size)
        if stored is None:
            handle.begin()
        return handle

    async def blob_info(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> int:
        """See `mirror.source.Source`."""
        registry = self._upstreams.registry(repository.registry)
        await self._admit_blob(repository, digest, authorization)
        stored = self._store.find(digest)
        known = stored.size if stored is not None else self._plans.size(repository, digest)
        if known is not None:
            return known
        size = await registry.head_blob(repository, digest, authorization=authorization)
        if size is None:
            raise UpstreamInvalid(f"the upstream does not say how long {digest} is")
        return size

    async def _admit_blob(self, repository: Repository, digest: Digest, authorization: str | None) -> None:
        await self.gate.revive_blob(repository, digest, authorization=authorization)
        self.gate.admit_blob(repository, digest)

    def transfer(self, repository: Repository, digest: Digest, size: int) -> Transfer:
        """The running or new transfer of a large blob."""
        plan = self._plans.find(repository, digest) or plan_of_blob(repository, digest, size)
        return self._swarms.want(plan, digest)

    async def small(self, repository: Repository, digest: Digest, size: int) -> None:
        """Bring a blob of up to 64 KiB into the store, single flight."""
        key = f"{repository}@{digest}"
        flight = self._small.get(key)
        if flight is None:
            flight = self._small[key] = asyncio.get_running_loop().create_future()
            self._scope.spawn(self._fly(self._small, key, flight, self._fetch_small(repository, digest, size)))
        await asyncio.shield(flight)

    async def _fetch_small(self, repository: Repository, digest: Digest, size: int) -> None:
        key = f"blob {repository}@{digest}"
        answer = await self._ask(key)
        if isinstance(answer, wire.Content) and answer.data:
            data = answer.data
        else:
            try:
                data = await self._read_small(repository, digest, size)
            except UpstreamError as error:
                if isinstance(answer, wire.Fetch):
                    self._refuse(key, error)
                raise
            if isinstance(answer, wire.Fetch):
                self._cluster.send(wire.Offer(key, str(digest), "application/octet-stream", len(data), data))
        self._swarms.stored(await self._store.put(data, digest))

    async def _read_small(self, repository: Repository, digest: Digest, size: int) -> bytes:
        registry = self._upstreams.registry(repository.registry)
        data = bytearray()
        async with registry.read_blob(repository, digest, size=size, patience=_PAUSE) as body:
            async for piece in body:
                data += piece
                self._swarms.count_upstream(len(piece))
                if len(data) > size:
                    raise UpstreamInvalid(f"{digest} is longer than the {size} bytes its manifest says")
        got = Digest.of(bytes(data), digest.algorithm)
        if got != digest:
            raise UpstreamInvalid(f"the upstream sent {got} ({len(data)} bytes) for {digest}")
        return bytes(data)

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

    @property
    def store(self) -> Store:
        """Where finished blobs are."""
        return self._store


class Handle:
    """One client's share in the one flight of a blob; see `mirror.source.BlobHandle`."""

    def __init__(self, pull: Pull, repository: Repository, digest: Digest, size: int) -> None:
        self.size: int | None = size
        self._pull = pull
        self._repository = repository
        self._digest = digest
        self._bytes = size
        self._transfer: Transfer | None = None

    def begin(self) -> None:
        """Join or start the flight, unless the blob is so small that it comes with one answer."""
        if self._transfer is None and self._bytes > SMALL_CONTENT:
            self._transfer = self._pull.transfer(self._repository, self._digest, self._bytes)
            self._transfer.clients += 1

    @property
    def delivering(self) -> bool:
        """Some source has delivered bytes of it, or of what its rollout delivers before it."""
        return self._transfer is not None and self._transfer.delivering

    async def proved(self) -> BlobFile:
        """Wait until the whole digest is proved and stored."""
        for _ in range(2):  # a stored file that turns out damaged is dropped and fetched again
            if self._pull.store.find(self._digest) is None:
                await self._fetch()
            blob = await self._pull.store.open_blob(self._digest)
            if blob is not None:
                return blob
            self._leave()
        raise StorageError(f"{self._digest} was stored and can't be read")

    async def _fetch(self) -> None:
        if self._bytes <= SMALL_CONTENT:
            await self._pull.small(self._repository, self._digest, self._bytes)
            return
        self.begin()
        assert self._transfer is not None
        await asyncio.shield(self._transfer.done)

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        """Attested chunks in order, the blob's last one only after the whole digest is proved.

        An empty piece says that the source is alive although this blob's next chunk is not here yet.
        """
        transfer = self._transfer
        if transfer is None:
            raise StorageError(f"{self._digest} is not on its way")
        await transfer.ready.wait()
        exchange = transfer.exchange
        if exchange is None:
            await asyncio.shield(transfer.done)
            raise StorageError(f"{self._digest} came without an exchange")
        loop = asyncio.get_running_loop()
        failed_before = exchange.failure
        moved = said = loop.time()  # of the last bytes; of the last piece, empty ones too
        while start < end:
            index = start // exchange.chunk_size
            if exchange.failure is not failed_before and exchange.failure is not None:
                raise exchange.failure
            proved = exchange.have >> index & 1 and (index < exchange.count - 1 or exchange.stored)
            if not proved:
                if not await _changes(exchange, said + _ALIVE):
                    said = loop.time()
                    if said - transfer.rollout.last_progress < 2 * _ALIVE and said - moved < _PATIENCE:
                        yield b""
                continue
            moved = said = loop.time()
            stop = min(end, start + _PIECE, chunk_range(index, exchange.size, exchange.chunk_size)[1])
            data = exchange.read(start, stop - start)
            if not data:
                raise StorageError(f"{self._digest} ends at byte {start}")
            yield data
            start += len(data)

    def release(self) -> None:
        """The client left or has got everything."""
        self._leave()

    def _leave(self) -> None:
        if self._transfer is not None:
            self._transfer.clients -= 1
            self._transfer = None


async def _changes(exchange: Exchange, deadline: float) -> bool:
    """Whether something changes before the loop's time is `deadline`."""
    try:
        async with asyncio.timeout_at(deadline):
            await exchange.changed()
    except TimeoutError:
        return False
    return True
