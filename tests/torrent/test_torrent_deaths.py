"""Nodes of twelve that die in the middle of a rollout."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import live_of, run_case

CHUNK = 64 * 1024
COUNT = 48
DATA = random.Random(11).randbytes(COUNT * CHUNK)


@pytest.mark.parametrize("dying", [2, 4])
def test_when_some_of_twelve_die_midway_the_others_finish_and_little_is_read_twice(tmp_path: Path, dying: int) -> None:
    reads: list[int] = []

    def read(lab: Lab, node: Node, index: int) -> None:
        reads.append(index)
        lab.give(node, DATA, index)

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        nodes = [await lab.node(f"n{i}") for i in range(12)]
        for node in nodes:
            await lab.fetch(node, DATA, CHUNK)
        lab.link_all()
        await until(lambda: all(len(node.engine.links()) == 11 for node in nodes))
        await until(lambda: all(live_of(node).connections for node in nodes))
        for index in range(COUNT // 2):
            read(lab, nodes[index % 12], index)
            await asyncio.sleep(0.01)
        dead, living = nodes[:dying], nodes[dying:]
        for node in dead:
            network.kill(node.name)
        for index in range(COUNT // 2, COUNT):
            read(lab, living[index % len(living)], index)

        def done() -> bool:
            """What only the dead had is read again, as the tracker would have it: by one node for each chunk."""
            for index in {index for node in living for missing in node.host.missing for index in missing}:
                if not any(node.exchange is not None and node.exchange.have >> index & 1 for node in living):
                    read(lab, living[0], index)
            return all(node.exchange is not None and node.exchange.whole for node in living)

        await until(done)
        for node in living:
            assert node.exchange is not None
            await node.exchange.commit(node.store)
            assert node.exchange.read(0, len(DATA)) == DATA
            assert not node.host.lied

    run_case(tmp_path, case)
    assert len(reads) <= 1.25 * COUNT
