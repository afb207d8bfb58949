"""The mesh without a tracker, on virtual time."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from support.memnet import MemoryNetwork
from support.swarmlab import Lab, until
from support.virtual import run_virtual

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.swarm.attest import Attestor

CHUNK = 64 * 1024
COUNT = 8
DATA = random.Random(1).randbytes(COUNT * CHUNK)


def test_what_a_node_was_reading_under_a_lease_when_the_tracker_went_is_read_by_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        network = MemoryNetwork()

        def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
            return MeshEngine(attestor.node, network.host(name), MeshSettings(), rng)

        async with Lab(tmp_path, make) as lab:
            nodes = [await lab.node(name) for name in ("one", "two", "three")]
            exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
            lab.link_all()
            await until(lambda: all(len(node.engine.links()) == 2 for node in nodes))
            for node in nodes:
                node.host.on_alone = lambda exchange, index, node=node: lab.give(node, DATA, index)
            assert all(nodes[0].engine.leased(exchanges[0], index) for index in range(COUNT))
            for node in nodes:
                node.engine.orphaned(3)
            await asyncio.sleep(3.0)
            assert [node.host.alone for node in nodes] == [[], [], []]
            for index in range(COUNT):
                nodes[0].engine.unleased(exchanges[0], index)
            await until(lambda: all(exchange.whole for exchange in exchanges))

    run_virtual(main())
