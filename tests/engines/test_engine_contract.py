"""What every engine must do, whatever it moves bytes with. Time is injected where the network is in memory."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from engines.engine_networks import Case, MeshOnMemory, Network, Run, TorrentOnLoopback
from support.swarmlab import Lab, until

from p2pdist.protocol.chunks import chunk_range

CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(20 * CHUNK + 100)
COUNT = 21


@pytest.fixture(params=[MeshOnMemory, TorrentOnLoopback], ids=["mesh", "bittorrent"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs one case on the network of each engine."""

    def runner(case: Case) -> None:
        network = request.param(tmp_path)

        async def main() -> None:
            async with Lab(tmp_path, network.make, network.address) as lab:
                await case(lab, network)

        network.run(main())

    return runner


def test_a_node_that_holds_a_blob_serves_it_whole_and_proved(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        seed, late = await lab.node("seed"), await lab.node("late")
        await lab.seed(seed, DATA, CHUNK)
        exchange = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([seed.info])
        await until(lambda: exchange.whole)
        await exchange.commit(late.store)
        assert exchange.read(0, len(DATA)) == DATA

    run(case)


def test_chunks_travel_on_before_the_blob_is_complete_and_enter_once(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        nodes = [await lab.node(f"n{i}") for i in range(6)]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
        lab.link_all()
        await until(lambda: all(len(node.engine.links()) == 5 for node in nodes))
        for index in range(COUNT):
            lab.give(nodes[index % 6], DATA, index)
        await until(lambda: all(exchange.whole for exchange in exchanges))
        for node, exchange in zip(nodes, exchanges, strict=True):
            await exchange.commit(node.store)
            assert exchange.read(0, len(DATA)) == DATA
        redundant = sum(node.engine.stats.bytes_redundant for node in nodes)
        assert redundant <= 0.02 * 6 * len(DATA)

    run(case)


def test_a_node_that_joins_over_an_older_link_gets_what_came_before_it(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        first, late = await lab.node("first"), await lab.node("late")
        complete = await lab.fetch(first, DATA, CHUNK)
        late.engine.link([first.info])  # for another blob, long ago
        await until(lambda: bool(first.engine.links()) and bool(late.engine.links()))
        for index in range(COUNT):
            lab.give(first, DATA, index)
        await until(lambda: complete.whole)
        exchange = await lab.fetch(late, DATA, CHUNK)
        await until(lambda: exchange.whole)
        await exchange.commit(late.store)
        assert exchange.read(0, len(DATA)) == DATA

    run(case)


def test_a_peer_that_sends_other_bytes_than_attested_is_refused_named_and_dropped(
    run: Run,
) -> None:
    async def case(lab: Lab, network: Network) -> None:
        liar, honest, victim = [await lab.node(name) for name in ("liar", "honest", "victim")]
        bad = await lab.seed(liar, DATA, CHUNK)
        await lab.seed(honest, DATA, CHUNK)
        for index in range(COUNT):
            bad.attestation(index)  # signed over the right bytes; then the file changes
        path = next((lab.directory / "liar").rglob(bad.digest.hex + "*"))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"\0" * len(DATA))
        exchange = await lab.fetch(victim, DATA, CHUNK)
        victim.engine.link([liar.info])
        await until(lambda: bool(victim.host.lied))
        assert victim.host.lied[0][0] == liar.attestor.node
        await until(lambda: not victim.engine.links())
        assert not exchange.have
        victim.engine.link([honest.info, liar.info])
        await until(lambda: exchange.whole)
        await exchange.commit(victim.store)
        assert exchange.read(0, len(DATA)) == DATA

    run(case)


def test_a_statement_of_someone_who_is_no_member_is_refused(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        stranger = await lab.node("stranger", lab.attestor(cluster=_other_cluster()))
        victim = await lab.node("victim")
        await lab.seed(stranger, DATA, CHUNK)
        exchange = await lab.fetch(victim, DATA, CHUNK)
        victim.engine.link([stranger.info])
        await until(lambda: bool(victim.host.lied))
        assert "not a member" in victim.host.lied[0][2]
        assert not exchange.have

    run(case)


def test_a_node_that_dies_is_replaced_by_the_others(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        nodes = [await lab.node(f"n{i}") for i in range(4)]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
        lab.link_all()
        await until(lambda: all(len(node.engine.links()) == 3 for node in nodes))
        for index in range(COUNT):
            lab.give(nodes[index % 2], DATA, index)
        network.kill("n3")
        await until(lambda: all(exchange.whole for exchange in exchanges[:3]))

    run(case)


def test_a_node_that_hangs_costs_the_others_little_and_is_reported(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        hung, good, want = [await lab.node(name) for name in ("hung", "good", "want")]
        await lab.seed(hung, DATA, CHUNK)
        await lab.seed(good, DATA, CHUNK)
        exchange = await lab.fetch(want, DATA, CHUNK)
        want.engine.link([hung.info, good.info])
        await until(lambda: len(want.engine.links()) == 2)
        network.hang("hung")
        began = _now()
        await until(lambda: exchange.whole)
        assert _now() - began < 4.0
        await until(lambda: want.host.dead == [hung.attestor.node], seconds=4.0)

    run(case)


def test_what_nobody_near_has_is_reported_missing(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        exchange = await lab.fetch(one, DATA, CHUNK)
        await lab.fetch(two, DATA, CHUNK)
        lab.link_all()
        lab.give(two, DATA, 3)
        await until(lambda: bool(exchange.have >> 3 & 1))
        await until(lambda: bool(one.host.missing))
        assert 3 not in one.host.missing[0]
        assert 4 in one.host.missing[0]

    run(case)


def test_without_a_tracker_each_chunk_is_read_about_once(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        nodes = [await lab.node(f"n{i}") for i in range(5)]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
        lab.link_all()
        await until(lambda: all(len(node.engine.links()) == 4 for node in nodes))
        for node in nodes:
            node.host.on_alone = lambda exchange, index, node=node: lab.give(node, DATA, index)
            node.engine.orphaned(5)
        await until(lambda: all(exchange.whole for exchange in exchanges), seconds=600)
        reads = sum(len(node.host.alone) for node in nodes)
        assert reads <= 1.15 * COUNT

    run(case)


def test_a_blob_that_nobody_opened_is_asked_of_its_holder(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        holder, late = await lab.node("holder"), await lab.node("late")
        asked: list[str] = []

        def seed(digest: str, size: int, chunk_size: int) -> None:
            asked.append(digest)

        holder.host.seed = seed
        exchange = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([holder.info])
        await until(lambda: bool(asked))
        await lab.seed(holder, DATA, CHUNK)
        await until(lambda: exchange.whole)

    run(case)


def test_stopping_leaves_nothing_behind(run: Run) -> None:
    async def case(lab: Lab, network: Network) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        await lab.seed(one, DATA, CHUNK)
        await lab.fetch(two, DATA, CHUNK)
        two.engine.link([one.info])
        await until(lambda: bool(two.exchange and two.exchange.have))
        await two.engine.stop()
        assert not network.sockets("two")
        await until(lambda: not one.engine.links())

    run(case)


def _now() -> float:

    return asyncio.get_running_loop().time()


def _other_cluster() -> Ed25519PrivateKey:

    return Ed25519PrivateKey.generate()


def test_the_last_chunk_may_be_short() -> None:
    assert chunk_range(COUNT - 1, len(DATA), CHUNK) == (20 * CHUNK, 20 * CHUNK + 100)
