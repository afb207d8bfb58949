"""A few nodes of one engine over any network, with a scripted source of chunks in place of upstream and tracker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.oci import Digest
from p2pdist.protocol.attest import membership_bytes
from p2pdist.protocol.chunks import chunk_range
from p2pdist.protocol.messages import Membership, PeerInfo
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange

EXPIRES = 10_000_000_000


@dataclass
class FakeHost:
    """What an engine told its host."""

    seed: Callable[[str, int, int], None] | None = None
    dead: list[bytes] = field(default_factory=list)
    lied: list[tuple[bytes, int, str]] = field(default_factory=list)
    missing: list[list[int]] = field(default_factory=list)
    more: list[int] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)
    on_alone: Callable[[Exchange, int], None] | None = None

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        if self.seed is not None:
            self.seed(digest, size, chunk_size)

    def peer_dead(self, peer: bytes) -> None:
        self.dead.append(peer)

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        self.lied.append((peer, index, why))

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        self.missing.append(indexes)

    def neighbours_wanted(self, count: int) -> None:
        self.more.append(count)

    def read_alone(self, exchange: Exchange, index: int) -> None:
        self.alone.append(index)
        if self.on_alone is not None:
            self.on_alone(exchange, index)


@dataclass
class Node:
    name: str
    store: Store
    attestor: Attestor
    engine: Engine
    host: FakeHost
    host_name: str
    exchange: Exchange | None = None

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.attestor.node, self.host_name, self.engine.port)


class Lab:
    """Nodes of one cluster. `make_engine(name, attestor, rng)` builds an engine on the test's network.

    `address`: where the network reaches the node of a name; the in-memory one by the name itself.
    """

    def __init__(
        self,
        directory: Path,
        make_engine: Callable[[str, Attestor, random.Random], Engine],
        address: Callable[[str], str] = str,
    ) -> None:
        self.directory = directory
        self.address = address
        self.make_engine = make_engine
        self.cluster = Ed25519PrivateKey.generate()
        self.nodes: list[Node] = []
        self.rng = random.Random(7)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def attestor(self, *, member: bool = True, cluster: Ed25519PrivateKey | None = None) -> Attestor:
        attestor = Attestor(Ed25519PrivateKey.generate())
        signature = (cluster or self.cluster).sign(membership_bytes(attestor.node, EXPIRES))
        if member:
            attestor.join(Membership(attestor.node, EXPIRES, signature), self.cluster.public_key().public_bytes_raw())
        return attestor

    async def node(self, name: str, attestor: Attestor | None = None) -> Node:
        store = await Store.open(self.directory / name)
        self._stack.push_async_callback(store.close)
        attestor = attestor or self.attestor()
        host = FakeHost()
        engine = self.make_engine(name, attestor, random.Random(len(self.nodes)))
        await engine.start(host)
        node = Node(name, store, attestor, engine, host, self.address(name))
        self._stack.push_async_callback(self._stop, node)
        self.nodes.append(node)
        return node

    async def _stop(self, node: Node) -> None:
        await node.engine.stop()
        if node.exchange is not None:
            await node.exchange.close()

    async def fetch(self, node: Node, data: bytes, chunk_size: int) -> Exchange:
        """`node` wants the blob."""
        digest = Digest.of(data)
        staging = await node.store.stage(digest, len(data), chunk_size)
        node.exchange = Exchange(digest, len(data), chunk_size, node.attestor, lambda: 0.0, staging=staging)
        node.engine.add(node.exchange)
        return node.exchange

    async def seed(self, node: Node, data: bytes, chunk_size: int) -> Exchange:
        """`node` has the blob."""
        digest = Digest.of(data)
        await node.store.put(data, digest)
        blob = await node.store.open_blob(digest)
        assert blob is not None
        node.exchange = Exchange(digest, len(data), chunk_size, node.attestor, lambda: 0.0, blob=blob)
        node.engine.add(node.exchange)
        return node.exchange

    def give(self, node: Node, data: bytes, index: int) -> None:
        """`node` reads one chunk from 'upstream' under a lease."""
        exchange = node.exchange
        assert exchange is not None
        if node.engine.leased(exchange, index):
            receiver = exchange.receive(index)
            start, end = chunk_range(index, exchange.size, exchange.chunk_size)
            receiver.feed(data[start:end])
            exchange.prove_read(receiver)
            node.engine.unleased(exchange, index)

    def link_all(self) -> None:
        for position, node in enumerate(self.nodes):
            node.engine.link(other.info for other in self.nodes[:position])


async def until(condition: Callable[[], bool], seconds: float = 60.0, step: float = 0.05) -> None:
    """Wait, in the loop's time, until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(step)


async def settle(*waits: Awaitable[object]) -> None:
    """All of `waits`."""
    await asyncio.gather(*waits)
