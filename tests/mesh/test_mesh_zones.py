"""The mesh between zones, on virtual time: nothing crosses but what a lease says, and what crosses is proved."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.memnet import MemoryNetwork
from support.swarmlab import Lab, Node, until
from support.virtual import run_virtual

from p2pdist.errors import PeerError
from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.oci import Digest
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.exchange import Exchange

CHUNK = 64 * 1024
COUNT = 8
DATA = random.Random(1).randbytes(COUNT * CHUNK)


def zone_of(name: str) -> str:
    return name.partition("-")[0]


def zoned(node: Node) -> PeerInfo:
    return PeerInfo(node.attestor.node, node.host_name, node.engine.port, zone=zone_of(node.name))


def run(tmp_path: Path, main: Callable[[Lab, MemoryNetwork], Awaitable[None]]) -> None:
    async def whole() -> None:
        network = MemoryNetwork()

        def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
            return MeshEngine(attestor.node, network.host(name), MeshSettings(zone=zone_of(name)), rng)

        async with Lab(tmp_path, make) as lab:
            await main(lab, network)

    run_virtual(whole())


async def carry(node: Node, exchange: Exchange, index: int, source: Node, halves: list[int] | None = None) -> None:
    """As under a lease."""
    engine = node.engine
    assert isinstance(engine, MeshEngine) and engine.leased(exchange, index)
    try:
        await engine.carry(exchange, index, zoned(source), lambda: halves.append(index) if halves is not None else None)
    finally:
        engine.unleased(exchange, index)


def test_neighbours_of_another_zone_give_nothing_but_what_is_leased(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b, c = [await lab.node(name) for name in ("one-a", "two-b", "two-c")]
        mine, far, near = [await lab.fetch(node, DATA, CHUNK) for node in (a, b, c)]
        for index in range(COUNT):
            lab.give(a, DATA, index)
        b.engine.link([zoned(a), zoned(c)])
        await until(lambda: len(b.engine.links()) == 2 and len(a.engine.links()) == 1)
        await asyncio.sleep(5.0)
        assert mine.whole and not far.have and not near.have  # neither the one that dialled nor the other
        halves: list[int] = []
        await carry(b, far, 3, a, halves)
        assert far.have == 1 << 3 and halves == [3]
        await until(lambda: near.have == 1 << 3)  # inside the zone it spreads as always

    run(tmp_path, main)


def test_what_crosses_keeps_the_attestation_of_who_read_it(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b = [await lab.node(name) for name in ("one-a", "two-b")]
        await lab.fetch(a, DATA, CHUNK)
        exchange = await lab.fetch(b, DATA, CHUNK)
        lab.give(a, DATA, 0)
        await carry(b, exchange, 0, a)
        witness = exchange.witness(0)
        assert witness is not None and witness.signer.node == a.attestor.node

    run(tmp_path, main)


def test_a_blob_that_is_only_stored_there_is_opened_for_who_asks(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b = [await lab.node(name) for name in ("one-a", "two-b")]
        await a.store.put(DATA, Digest.of(DATA))
        blob = await a.store.open_blob(Digest.of(DATA))
        assert blob is not None
        a.exchange = Exchange(Digest.of(DATA), len(DATA), CHUNK, a.attestor, lambda: 0.0, blob=blob)
        a.host.seed = lambda digest, size, chunk_size: a.engine.add(a.exchange) if a.exchange else None
        exchange = await lab.fetch(b, DATA, CHUNK)
        for index in range(COUNT):
            await carry(b, exchange, index, a)
        assert exchange.whole

    run(tmp_path, main)


@pytest.mark.parametrize("how", ["dead", "hangs", "has none"])
def test_a_source_that_gives_nothing_is_given_up_in_seconds(tmp_path: Path, how: str) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b = [await lab.node(name) for name in ("one-a", "two-b")]
        await lab.fetch(a, DATA, CHUNK)
        exchange = await lab.fetch(b, DATA, CHUNK)
        if how != "has none":
            lab.give(a, DATA, 0)
        host = network.host("one-a")
        if how == "dead":
            host.kill()
        elif how == "hangs":
            host.hang()
        loop = asyncio.get_running_loop()
        before = loop.time()
        with pytest.raises(PeerError):
            await carry(b, exchange, 0, a)
        assert loop.time() - before <= 10.0 and not exchange.have
        lab.give(b, DATA, 0)  # the lease went over to the upstream
        assert exchange.have == 1

    run(tmp_path, main)


def test_a_connection_that_was_closed_while_idle_costs_nothing(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b = [await lab.node(name) for name in ("one-a", "two-b")]
        await lab.fetch(a, DATA, CHUNK)
        exchange = await lab.fetch(b, DATA, CHUNK)
        for index in range(3):
            lab.give(a, DATA, index)
        await carry(b, exchange, 0, a)
        for pipe in list(network.host("one-a").pipes):
            pipe.abort()  # and b does not know yet
        await carry(b, exchange, 1, a)
        await asyncio.sleep(1.0)
        await carry(b, exchange, 2, a)
        assert exchange.have == 0b111

    run(tmp_path, main)


def test_a_source_that_lies_is_banned_and_reported(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        a, b = [await lab.node(name) for name in ("one-a", "two-b")]
        theirs = await lab.fetch(a, DATA, CHUNK)
        exchange = await lab.fetch(b, DATA, CHUNK)
        lab.give(a, DATA, 0)
        os.pwrite(theirs.fd, b"x" * 100, 0)
        with pytest.raises(PeerError):
            await carry(b, exchange, 0, a)
        assert [(peer, index) for peer, index, _ in b.host.lied] == [(a.attestor.node, 0)]
        lab.give(a, DATA, 1)
        with pytest.raises(PeerError, match="banned"):
            await carry(b, exchange, 1, a)
        assert not exchange.have

    run(tmp_path, main)


def test_with_no_tracker_zones_exchange_what_both_have_and_read_the_rest_once(tmp_path: Path) -> None:
    async def main(lab: Lab, network: MemoryNetwork) -> None:
        nodes = [await lab.node(name) for name in ("one-a", "one-b", "two-c", "two-d")]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
        reads: list[int] = []
        for node in nodes:

            def read(exchange: Exchange, index: int, node: Node = node) -> None:
                reads.append(index)
                lab.give(node, DATA, index)

            node.host.on_alone = read
        for index in range(COUNT // 2):
            lab.give(nodes[0], DATA, index)
        for position, node in enumerate(nodes):
            node.engine.link(zoned(other) for other in nodes[:position])
        await until(lambda: all(len(node.engine.links()) == 3 for node in nodes))
        await until(lambda: exchanges[1].have.bit_count() == COUNT // 2)
        assert not exchanges[2].have
        for node in nodes:
            node.engine.orphaned(4)
        await until(lambda: all(exchange.whole for exchange in exchanges), 300.0)
        assert sorted(reads) == list(range(COUNT // 2, COUNT)), reads

    run(tmp_path, main)
