"""The swarms of this node: joins them at the tracker, holds leases, reads under them, and finishes blobs.

Between the tracker (who else, which lease), the engine (chunks from peers) and the upstream registry stands this
service; it knows which blobs are wanted, and ends each transfer with a stored blob or an error. With no tracker it
goes on as the design page on the swarm says; when nothing moves for `stuck_seconds`, it reads from upstream itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from p2pdist.errors import (
    DigestMismatch,
    InputError,
    OperationError,
    StorageError,
    UpstreamDenied,
    UpstreamError,
    UpstreamNotFound,
    UpstreamUnreachable,
)
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_size_for, valid_chunk_size
from p2pdist.scope import Scope
from p2pdist.store import Store, StoredBlob
from p2pdist.swarm.attest import Attestor, unpack
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.plan import Plan
from p2pdist.swarm.reading import read_run, runs
from p2pdist.swarm.transfers import Rollout, Transfer
from p2pdist.upstream import Registry

_log = structlog.get_logger("p2pdist.swarm")


class Tracker(Protocol):
    """The session with the tracker, as far as swarms need it."""

    @property
    def connected(self) -> bool:
        """A session is open."""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message; False (and dropped) while no session is open."""


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """Times in seconds."""

    join_seconds: float = 1.0  # a tracker that has not answered a Join by then is done without
    stuck_seconds: float = 10.0  # no progress of a rollout for so long: own reads from upstream
    linger_seconds: float = 300.0  # a rollout that no client waits for goes on for so long
    streams: int = 3  # streams of whole blobs at once with no tracker
    live_seeds: int = 256  # stored blobs that are open for peers at once


class SwarmService:
    """See the module."""

    def __init__(
        self,
        store: Store,
        registry: Callable[[str], Registry],
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        settings: SwarmSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bytes_from_upstream = 0
        self._store = store
        self._registry = registry
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._settings = settings
        self._clock = clock
        self._rollouts: dict[Digest, Rollout] = {}
        self._transfers: dict[str, Transfer] = {}
        self._seeds: OrderedDict[str, Exchange] = OrderedDict()
        self._opening: set[str] = set()
        self._paused: dict[str, float] = {}
        self.known: list[wire.PeerInfo] = []  # neighbours of an earlier run, for a start without a tracker
        self.nodes = 1
        self._lost_at: float | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Ready for `want`; the engine runs already."""
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        await self._scope.start()
        self._scope.spawn(self._watch())

    async def stop(self) -> None:
        """Leave every swarm; partial blobs stay on disk for the next start."""
        await self._scope.stop()
        for transfer in list(self._transfers.values()):
            await self._end(transfer, StorageError("the agent is stopping"))
        for exchange in list(self._seeds.values()):
            self._engine.remove(exchange)
            await exchange.close()
        self._seeds.clear()

    @property
    def transfers(self) -> list[Transfer]:
        """What is on its way."""
        return list(self._transfers.values())

    @property
    def seeds(self) -> int:
        """Stored blobs that are open for peers."""
        return len(self._seeds)

    # --- wanting -------------------------------------------------------------------------------------------------

    def want(self, plan: Plan, digest: Digest) -> Transfer:
        """The one transfer of `digest`, started with the rest of its plan if it does not run yet.

        Await its `done` shielded: others may be waiting for it too.
        """
        running = self._transfers.get(str(digest))
        if running is not None:
            running.rollout.last_interest = self._loop.time()
            return running
        rollout = self._rollouts.get(plan.rollout)
        if rollout is None:
            rollout = self._rollouts[plan.rollout] = Rollout(plan, self._loop.time())
        rollout.last_interest = self._loop.time()
        new: list[Transfer] = []
        for blob in plan.blobs:
            if str(blob.digest) in self._transfers or self._store.find(blob.digest) is not None:
                continue
            transfer = Transfer(rollout, blob, self._loop.create_future(), self._loop.time())
            self._transfers[str(blob.digest)] = transfer
            rollout.transfers.append(transfer)
            new.append(transfer)
        self._scope.spawn(self._begin(rollout, new))
        return self._transfers[str(digest)]

    async def _begin(self, rollout: Rollout, new: list[Transfer]) -> None:
        partial = {str(digest): chunk_size for digest, _, chunk_size in self._store.partials()}
        for transfer in new:
            chunk_size = partial.get(str(transfer.blob.digest))
            if chunk_size is not None:
                await self._open(transfer, chunk_size)
        self._join(rollout)
        if not self._tracker.connected and not self._engine.links():
            self._engine.link(self.known)
        await asyncio.sleep(0 if not self._tracker.connected else self._settings.join_seconds)
        for transfer in new:
            if transfer.exchange is None and not transfer.done.done():
                await self._open(transfer, chunk_size_for(rollout.plan.size, transfer.blob.size))
        self._help(rollout, self._loop.time())

    def _join(self, rollout: Rollout) -> None:
        wants = [self._want_of(transfer) for transfer in rollout.unfinished]
        if wants:
            registry = rollout.plan.repository.registry
            self._tracker.send(wire.Join(str(rollout.plan.rollout), registry, wants))

    def _want_of(self, transfer: Transfer) -> wire.Want:
        exchange = transfer.exchange
        digest, size = str(transfer.blob.digest), transfer.blob.size
        if exchange is None:
            return wire.Want(digest, size)
        return wire.Want(digest, size, exchange.chunk_size, _bitmap(exchange))

    async def _open(self, transfer: Transfer, chunk_size: int) -> None:
        """Stage the blob in chunks of `chunk_size` and take part in its swarm."""
        blob, old = transfer.blob, transfer.exchange
        if transfer.done.done() or (old is not None and old.chunk_size == chunk_size):
            return
        if old is not None:
            if old.have:
                return  # chunks are here already: the swarm of another cut is no use any more
            self._engine.remove(old)
            transfer.exchange = None
            await old.close()
        try:
            staging = await self._store.stage(blob.digest, blob.size, chunk_size)
        except StorageError as error:
            await self._end(transfer, error)
            return
        exchange = Exchange(blob.digest, blob.size, chunk_size, self._attestor, self._clock, staging=staging)
        transfer.exchange = exchange
        exchange.listeners.append(self._progressed)
        exchange.on_broken = self._broken
        self._engine.add(exchange)
        transfer.ready.set()
        if exchange.whole:
            self._scope.spawn(self._finish(transfer))

    def _broken(self, exchange: Exchange, error: StorageError) -> None:
        transfer = self._transfers.get(exchange.name)
        if transfer is not None and transfer.exchange is exchange:
            self._scope.spawn(self._end(transfer, error))

    def _progressed(self, exchange: Exchange, index: int) -> None:
        transfer = self._transfers.get(exchange.name)
        if transfer is None:
            return
        transfer.rollout.last_progress = self._loop.time()
        if exchange.whole and not transfer.finishing:
            transfer.finishing = True
            self._scope.spawn(self._finish(transfer))

    async def _finish(self, transfer: Transfer) -> None:
        exchange = transfer.exchange
        assert exchange is not None
        transfer.finishing = True
        whole = self._loop.time()
        try:
            await exchange.commit(self._store)
        except DigestMismatch as error:
            await self._distrust(transfer, error)
            return
        except StorageError as error:
            await self._end(transfer, error)
            return
        stored = self._store.find(exchange.digest)
        if stored is None:
            await self._end(transfer, StorageError(f"{exchange.name} was evicted as soon as it was stored"))
            return
        _log.info(
            "blob stored",
            digest=exchange.name,
            size=exchange.size,
            seconds=round(whole - transfer.began, 3),
            proving_seconds=round(self._loop.time() - whole, 3),
            from_upstream=transfer.from_upstream,
        )
        self._tracker.send(wire.Done(exchange.name))
        exchange.listeners.remove(self._progressed)
        self._settle(transfer)
        if not transfer.done.done():
            transfer.done.set_result(stored)
        await self._keep_seed(exchange)

    async def _distrust(self, transfer: Transfer, error: DigestMismatch) -> None:
        """Some attestation was false: every chunk not read here is forgotten and read from upstream."""
        exchange = transfer.exchange
        assert exchange is not None
        _log.error("every chunk was proved and the whole is wrong: somebody lied", digest=exchange.name, why=str(error))
        if transfer.distrusted:
            await self._end(transfer, error)
            return
        transfer.distrusted = True
        transfer.finishing = False
        self._engine.remove(exchange)
        self._tracker.send(wire.Leave(exchange.name))
        for index in range(exchange.count):
            exchange.forget(index)
        self._stream(transfer)

    def _settle(self, transfer: Transfer) -> None:
        """The transfer is over, whichever way."""
        if self._transfers.get(str(transfer.blob.digest)) is transfer:
            del self._transfers[str(transfer.blob.digest)]
        rollout = transfer.rollout
        if transfer in rollout.transfers:
            rollout.transfers.remove(transfer)
        if not rollout.transfers and self._rollouts.get(rollout.plan.rollout) is rollout:
            del self._rollouts[rollout.plan.rollout]

    async def _end(self, transfer: Transfer, error: Exception) -> None:
        transfer.fail(error)
        self._tracker.send(wire.Leave(str(transfer.blob.digest)))
        if transfer.exchange is not None:
            self._engine.remove(transfer.exchange)
            await transfer.exchange.close(keep=not isinstance(error, DigestMismatch))
        self._settle(transfer)  # last: the partial can be staged again only now

    # --- seeding -------------------------------------------------------------------------------------------------

    async def _keep_seed(self, exchange: Exchange) -> None:
        old = self._seeds.pop(exchange.name, None)
        self._seeds[exchange.name] = exchange
        closing = [] if old is None or old is exchange else [old]
        while len(self._seeds) > self._settings.live_seeds:
            closing.append(self._seeds.popitem(last=False)[1])
        for one in closing:
            self._engine.remove(one)
            await one.close()

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        """See `engine.Host`."""
        if digest in self._transfers or digest in self._opening:
            return
        try:
            parsed = Digest.parse(digest)
        except InputError:
            return
        stored = self._store.find(parsed)
        if stored is not None and stored.size == size and valid_chunk_size(size, chunk_size):
            self._opening.add(digest)
            self._scope.spawn(self._seed(parsed, chunk_size))

    async def _seed(self, digest: Digest, chunk_size: int) -> None:
        try:
            blob = await self._store.open_blob(digest)
            if blob is None:
                self._tracker.send(wire.Drops([str(digest)]))
                return
            exchange = Exchange(digest, blob.size, chunk_size, self._attestor, self._clock, blob=blob)
            self._engine.add(exchange)
            await self._keep_seed(exchange)
        except OperationError as error:
            _log.warning("a stored blob can't be served to peers", digest=str(digest), error=str(error))
        finally:
            self._opening.discard(str(digest))

    def stored(self, blob: StoredBlob) -> None:
        """A blob came into the store on another way; peers may have it."""
        self._tracker.send(wire.Holds([str(blob.digest)]))

    # --- what the engine reports ---------------------------------------------------------------------------------

    def peer_dead(self, peer: bytes) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Dead(peer))

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Accuse(peer, exchange.name, index))

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Miss(exchange.name, indexes))

    def neighbours_wanted(self, count: int) -> None:
        """See `engine.Host`."""
        for transfer in self._transfers.values():
            if transfer.exchange is not None and not transfer.exchange.whole:
                self._tracker.send(wire.More(transfer.exchange.name, count))
                return

    def read_alone(self, exchange: Exchange, index: int) -> None:
        """See `engine.Host`."""
        transfer = self._transfers.get(exchange.name)
        if transfer is not None and not transfer.alone and self._engine.leased(exchange, index):
            transfer.reads += 1
            self._scope.spawn(self._read_lease(transfer, exchange, index, index + 1))

    # --- what the tracker says -----------------------------------------------------------------------------------

    def tracker_state(self, connected: bool) -> None:
        """The session with the tracker came or went."""
        if connected:
            self._lost_at = None
            self._engine.orphaned(None)
        elif self._lost_at is None:
            self._lost_at = self._loop.time()
            self._engine.orphaned(self.nodes)

    def tracker_message(self, message: wire.FromTracker) -> None:
        """A message came from the tracker."""
        match message:
            case wire.Welcome():
                self._welcomed(message)
            case wire.Joined():
                self._scope.spawn(self._joined(message))
            case wire.Neighbours():
                self._engine.link(message.peers)
            case wire.Lease():
                self._leased(message)
            case wire.Recall():
                self._recalled(message.digest)
            case wire.Throttle():
                self._paused[message.registry] = self._loop.time() + message.seconds
            case wire.Gone():
                self._gone(message)
            case wire.Banned():
                self._attestor.ban(message.node, message.until)
                self._engine.ban(message.node, max(0.0, message.until - self._clock()))
            case wire.Pong():
                self.nodes = message.nodes

    def _welcomed(self, message: wire.Welcome) -> None:
        self._attestor.join(message.membership, message.cluster_key)
        self.nodes = message.nodes
        digests = [str(blob.digest) for blob in self._store.stored()]
        for start in range(0, len(digests), 4096):
            self._tracker.send(wire.Holds(digests[start : start + 4096]))
        for rollout in self._rollouts.values():
            self._join(rollout)

    async def _joined(self, message: wire.Joined) -> None:
        for swarm in message.swarms:
            transfer = self._transfers.get(swarm.digest)
            if transfer is not None and valid_chunk_size(transfer.blob.size, swarm.chunk_size):
                transfer.rollout.joined = True
                await self._open(transfer, swarm.chunk_size)
        self._engine.link(message.peers)

    def _leased(self, message: wire.Lease) -> None:
        transfer = self._transfers.get(message.digest)
        if transfer is not None:
            transfer.reads += 1
            if message.alone:
                transfer.alone, transfer.recalled = True, False  # now: a recall may come before the stream begins
            self._scope.spawn(self._take_lease(transfer, message))

    async def _take_lease(self, transfer: Transfer, lease: wire.Lease) -> None:
        await transfer.ready.wait()
        exchange = transfer.exchange
        if exchange is None or transfer.done.done() or lease.first >= exchange.count:
            transfer.reads -= 1
            transfer.alone = transfer.alone and not lease.alone
            return
        if lease.alone:
            await self._read_stream(transfer, exchange)
            return
        end = min(exchange.count, lease.first + lease.count)
        for index in range(lease.first, end):
            if not self._engine.leased(exchange, index):
                self._report(transfer, exchange, index)
        await self._read_lease(transfer, exchange, lease.first, end)

    def _recalled(self, digest: str) -> None:
        transfer = self._transfers.get(digest)
        if transfer is None or transfer.exchange is None:
            return
        if transfer.alone:
            transfer.recalled = True
        else:
            self._tracker.send(wire.Returned(digest, _bitmap(transfer.exchange)))

    def _gone(self, message: wire.Gone) -> None:
        transfer = self._transfers.get(message.digest)
        if transfer is not None:
            text = f"{message.digest}: the upstream answers {message.status}"
            error = UpstreamNotFound(text) if message.status == 404 else UpstreamDenied(text)
            self._scope.spawn(self._end(transfer, error))

    # --- reading from upstream -----------------------------------------------------------------------------------

    async def _read_lease(self, transfer: Transfer, exchange: Exchange, first: int, end: int) -> None:
        """Read what is missing of [first, end), reporting each chunk."""
        try:
            missing = exchange.full & ~exchange.have
            for start, stop in runs(missing, first, end):
                await self._pause(transfer)
                await read_run(*self._source(transfer), exchange, start, stop, _Leased(self, transfer))
        except UpstreamError as error:
            self._failed(transfer, exchange, first, error)
        except StorageError as error:
            await self._end(transfer, error)
        finally:
            transfer.reads -= 1
            for index in range(first, end):
                self._engine.unleased(exchange, index)

    def _source(self, transfer: Transfer) -> tuple[Registry, Repository, Digest]:
        repository = transfer.rollout.plan.repository
        return self._registry(repository.registry), repository, transfer.blob.digest

    async def _pause(self, transfer: Transfer) -> None:
        wait = self._paused.get(transfer.rollout.plan.repository.registry, 0.0) - self._loop.time()
        if wait > 0:
            await asyncio.sleep(wait)

    def _failed(self, transfer: Transfer, exchange: Exchange, index: int, error: UpstreamError) -> None:
        final = isinstance(error, (UpstreamNotFound, UpstreamDenied))
        status = error.status or (404 if isinstance(error, UpstreamNotFound) else 0)
        told = self._tracker.send(
            wire.Failed(exchange.name, index, status, final, error.retry_after or 0.0, str(error)[:512])
        )
        _log.warning("a read from upstream failed", digest=exchange.name, chunk=index, error=str(error))
        if not told and final:
            self._scope.spawn(self._end(transfer, error))

    def _stream(self, transfer: Transfer) -> None:
        """Read everything that is missing, as one stream, without a lease."""
        if transfer.exchange is not None and not transfer.alone:
            transfer.alone, transfer.recalled = True, False
            transfer.reads += 1
            self._scope.spawn(self._read_stream(transfer, transfer.exchange))

    async def _read_stream(self, transfer: Transfer, exchange: Exchange) -> None:
        tries = 0
        try:
            while not transfer.recalled and exchange.have != exchange.full:
                before = exchange.have
                try:
                    for start, stop in runs(exchange.full & ~exchange.have, 0, exchange.count):
                        await self._pause(transfer)
                        await read_run(*self._source(transfer), exchange, start, stop, _Alone(self, transfer))
                        if transfer.recalled:
                            break
                except UpstreamError as error:
                    tries = tries + 1 if exchange.have == before else 0
                    if not error.temporary or tries >= 3:
                        raise
                    await asyncio.sleep(error.retry_after or min(5.0, 0.5 * 2**tries))
        except UpstreamError as error:
            self._failed(transfer, exchange, _first_missing(exchange), error)
            if not error.temporary or not self._engine.links():
                await self._end(transfer, error)
        except StorageError as error:
            await self._end(transfer, error)
        finally:
            transfer.alone = False
            transfer.reads -= 1
            if transfer.recalled:
                transfer.recalled = False
                self._tracker.send(wire.Returned(exchange.name, _bitmap(exchange)))

    def _report(self, transfer: Transfer, exchange: Exchange, index: int) -> None:
        """A leased chunk is here."""
        packed = exchange.attestation(index)
        if packed is not None:
            attestation = unpack(packed)
            self._tracker.send(wire.Got(exchange.name, index, attestation.sha256, attestation.signature))

    def count_upstream(self, transfer: Transfer, count: int) -> None:
        """Bytes came from upstream."""
        transfer.from_upstream += count
        self.bytes_from_upstream += count
        transfer.rollout.last_progress = self._loop.time()

    # --- time ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Rollouts that nobody helps are read from upstream here; those that nobody wants any more are given up."""
        while True:
            await asyncio.sleep(0.25)
            now = self._loop.time()
            for rollout in list(self._rollouts.values()):
                if any(transfer.clients for transfer in rollout.transfers):
                    rollout.last_interest = now
                if now - rollout.last_interest > self._settings.linger_seconds:
                    for transfer in rollout.unfinished:
                        await self._end(transfer, UpstreamUnreachable("nobody waits for this blob any more"))
                else:
                    self._help(rollout, now)

    def _help(self, rollout: Rollout, now: float) -> None:
        """Read from upstream what nobody else will bring: at once where nobody else is, else when nothing moves."""
        if not self._tracker.connected and not self._engine.links():
            if self.known and now - rollout.began < self._settings.join_seconds:
                return  # neighbours of an earlier run may still answer
        elif now - max(rollout.last_progress, rollout.began) < self._settings.stuck_seconds:
            return
        streams = sum(transfer.alone for transfer in self._transfers.values())
        for transfer in rollout.unfinished:
            if streams >= self._settings.streams:
                return
            exchange = transfer.exchange
            if exchange is not None and not transfer.alone and not exchange.whole:
                _log.warning(
                    "nothing moves: reading from upstream",
                    digest=exchange.name,
                    missing=exchange.count - exchange.have.bit_count(),
                    chunks=exchange.count,
                    links=len(self._engine.links()),
                    reads=transfer.reads,
                )
                self._stream(transfer)
                streams += 1


class _Alone:
    """A stream of everything: nothing is reported, a recall ends it after the chunk at hand."""

    def __init__(self, service: SwarmService, transfer: Transfer) -> None:
        self._service = service
        self._transfer = transfer

    def read_wanted(self, exchange: Exchange, index: int) -> bool:
        return not self._transfer.recalled and not exchange.have >> index & 1

    def read_bytes(self, exchange: Exchange, count: int) -> None:
        self._service.count_upstream(self._transfer, count)

    def read_half(self, exchange: Exchange, index: int) -> None:
        self._service._engine.coming(exchange, index)

    def read_chunk(self, exchange: Exchange, index: int, sha256: bytes) -> None:
        pass


class _Leased(_Alone):
    """A lease: half and whole chunks are reported."""

    def read_wanted(self, exchange: Exchange, index: int) -> bool:
        return not exchange.have >> index & 1

    def read_half(self, exchange: Exchange, index: int) -> None:
        self._service._tracker.send(wire.Half(exchange.name, index))
        self._service._engine.coming(exchange, index)

    def read_chunk(self, exchange: Exchange, index: int, sha256: bytes) -> None:
        self._service._report(self._transfer, exchange, index)


def _bitmap(exchange: Exchange) -> bytes:
    return exchange.have.to_bytes((exchange.count + 7) // 8, "little")


def _first_missing(exchange: Exchange) -> int:
    missing = exchange.full & ~exchange.have
    return (missing & -missing).bit_length() - 1 if missing else 0
