"""A swarm service whose tracker, engine and upstream do what the test says; the store is a real one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.virtual import run_virtual

from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.protocol.attest import membership_bytes
from p2pdist.protocol.chunks import chunk_range
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import EngineStats
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.plan import Plan, PlannedBlob
from p2pdist.swarm.service import SwarmService, SwarmSettings
from p2pdist.swarm.transfers import Transfer

CHUNK = 64 * 1024
REPOSITORY = Repository("registry.example", "app/a")
NOW = 1_000_000.0
EXPIRES = 10_000_000_000
M = TypeVar("M", bound=wire.Message)


class ScriptedTracker:
    """Keeps what it was sent."""

    def __init__(self, *, connected: bool = True) -> None:
        self.connected = connected
        self.sent: list[wire.Message] = []
        self.answer: Callable[[Any], None] = lambda message: None
        self.hints: list[list[int]] = []  # answers to Doubts; then: it is your turn

    def send(self, message: Any) -> bool:
        if self.connected:
            self.sent.append(message)
            if isinstance(message, wire.Doubts):
                hint = self.hints.pop(0) if self.hints else None
                told = wire.Search(message.digest) if hint is None else wire.Suspects(message.digest, CHUNK, hint)
                asyncio.get_running_loop().call_later(0.01, self.answer, told)
        return self.connected

    def got(self, kind: type[M]) -> list[M]:
        return [message for message in self.sent if isinstance(message, kind)]


class ScriptedEngine:
    """Moves nothing; the test brings what peers would."""

    name = "scripted"
    discovery = 0.0  # as an engine that finds nobody by itself

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.port = 1
        self.exchanges: list[Exchange] = []
        self.added = 0
        self.linked: list[wire.PeerInfo] = []
        self.bans: list[bytes] = []
        self.leases: list[int] = []
        self.half: list[int] = []
        self.orphans: list[int | None] = []

    async def start(self, host: object) -> None: ...

    async def stop(self) -> None: ...

    def add(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.added += 1

    def remove(self, exchange: Exchange) -> None:
        if exchange in self.exchanges:
            self.exchanges.remove(exchange)

    def link(self, peers: Iterable[wire.PeerInfo]) -> None:
        self.linked += peers

    def links(self) -> list[wire.PeerInfo]:
        return self.linked

    def ban(self, peer: bytes, seconds: float) -> None:
        self.bans.append(peer)

    def leased(self, exchange: Exchange, index: int) -> bool:
        self.leases.append(index)
        return not exchange.have >> index & 1

    def coming(self, exchange: Exchange, index: int) -> None:
        self.half.append(index)

    def unleased(self, exchange: Exchange, index: int) -> None:
        self.leases.remove(index)

    def orphaned(self, nodes: int | None) -> None:
        self.orphans.append(nodes)


class ScriptedBody:
    def __init__(self, total: int, pieces: AsyncIterator[bytes]) -> None:
        self.total = total
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


class ScriptedRegistry:
    """Blobs, in pieces of half a chunk. `errors` are raised by the next reads; `gate` holds each piece back."""

    def __init__(self) -> None:
        self.name = REPOSITORY.registry
        self.blobs: dict[Digest, bytes] = {}
        self.reads: list[tuple[int, int]] = []  # chunks [first, end)
        self.began: list[float] = []
        self.errors: list[Exception] = []
        self.wrong: dict[int, int] = {}  # chunk: how often it still comes wrong
        self.gate: Callable[[], Awaitable[None]] | None = None

    @property
    def chunks(self) -> list[int]:
        return [index for first, end in self.reads for index in range(first, end)]

    @asynccontextmanager
    async def read_blob(
        self, repository: Repository, digest: Digest, *, start: int = 0, end: int | None = None, **_: object
    ) -> AsyncIterator[ScriptedBody]:
        data = self.blobs[digest]
        end = len(data) if end is None else end
        self.reads.append((start // CHUNK, -(-end // CHUNK)))
        self.began.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        yield ScriptedBody(len(data), self._pieces(data, start, end))

    async def _pieces(self, data: bytes, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            if self.gate is not None:
                await self.gate()
            await asyncio.sleep(0.02)
            stop = min(end, start + CHUNK // 2)
            index = start // CHUNK
            piece = data[start:stop]
            if start % CHUNK == 0 and self.wrong.get(index, 0) > 0:
                self.wrong[index] -= 1
                piece = bytes([piece[0] ^ 1]) + piece[1:]
            yield piece
            start = stop


@dataclass
class Script:
    """What a test has in hand."""

    store: Store
    tracker: ScriptedTracker
    engine: ScriptedEngine
    registry: ScriptedRegistry
    attestor: Attestor
    cluster: Ed25519PrivateKey
    swarms: SwarmService
    stopped: bool = False

    async def stop(self) -> None:
        """The agent stops."""
        if not self.stopped:
            self.stopped = True
            await self.swarms.stop()

    def member(self) -> Attestor:
        """Another node of the cluster."""
        return _member(self.cluster)

    def want(self, *blobs: bytes, first: int = 0) -> Transfer:
        """A client asks for the blob number `first` of an image of these."""
        for data in blobs:
            self.registry.blobs[Digest.of(data)] = data
        plan = Plan(
            Digest.of(b"manifest"), REPOSITORY, tuple(PlannedBlob(Digest.of(data), len(data)) for data in blobs)
        )
        transfer = self.swarms.want(plan, Digest.of(blobs[first]))
        transfer.clients += 1
        return transfer

    async def joined(self, transfer: Transfer) -> Exchange:
        """The tracker answers the Join: chunks of 64 KiB."""
        digest = str(transfer.blob.digest)
        await self.until(lambda: bool(self.tracker.got(wire.Join)))
        self.swarms.tracker_message(wire.Joined(digest, [wire.Swarm(digest, CHUNK, 2, 0)], []))
        await transfer.ready.wait()
        assert transfer.exchange is not None
        return transfer.exchange

    def lease(self, transfer: Transfer, first: int, count: int = 1, *, alone: bool = False) -> None:
        self.swarms.tracker_message(wire.Lease(str(transfer.blob.digest), first, count, alone))

    def bring(self, exchange: Exchange, data: bytes, signer: Attestor, *indexes: int) -> None:
        """A peer sends chunks of `data` that `signer` attests."""
        for index in indexes:
            start, end = chunk_range(index, exchange.size, exchange.chunk_size)
            piece = data[start:end]
            sha256 = hashlib.sha256(piece).digest()
            attestation = signer.sign(exchange.name, exchange.chunk_size, index, sha256)
            assert attestation is not None
            receiver = exchange.receive(index)
            receiver.feed(piece)
            exchange.prove(receiver, attestation, signer.node)

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)


def _member(cluster: Ed25519PrivateKey) -> Attestor:
    attestor = Attestor(Ed25519PrivateKey.generate())
    signature = cluster.sign(membership_bytes(attestor.node, EXPIRES))
    attestor.join(wire.Membership(attestor.node, EXPIRES, signature), cluster.public_key().public_bytes_raw())
    return attestor


def play(
    directory: Path,
    case: Callable[[Script], Coroutine[Any, Any, None]],
    settings: SwarmSettings | None = None,
    *,
    connected: bool = True,
) -> None:
    """Run `case` at injected time."""

    async def main() -> None:
        cluster = Ed25519PrivateKey.generate()
        attestor = _member(cluster)
        tracker, engine, registry = ScriptedTracker(connected=connected), ScriptedEngine(), ScriptedRegistry()
        store = await Store.open(directory / "store")
        try:
            swarms = SwarmService(
                store,
                lambda _: registry,  # type: ignore[arg-type, return-value]
                engine,
                attestor,
                tracker,
                settings or SwarmSettings(),
                lambda: NOW,
            )
            tracker.answer = swarms.tracker_message
            await swarms.start()
            script = Script(store, tracker, engine, registry, attestor, cluster, swarms)
            try:
                await case(script)
            finally:
                await script.stop()
        finally:
            await store.close()

    run_virtual(main())
