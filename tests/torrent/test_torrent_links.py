"""Control links: who is silent, and what a node that is stopping or was held up does about it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import run_case

from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.links import Links


async def _pair(lab: Lab) -> tuple[Node, Links]:
    one, other = await lab.node("one"), await lab.node("other")
    one.engine.link([other.info])
    await until(lambda: len(one.engine.links()) == 1)
    assert isinstance(one.engine, TorrentEngine)
    return one, one.engine._parts.links


def test_a_node_that_was_itself_held_up_drops_no_neighbour_for_it(tmp_path: Path) -> None:
    dead: list[bytes] = []

    async def case(lab: Lab, _: TorrentOnLoopback) -> None:
        _, links = await _pair(lab)
        now = asyncio.get_running_loop().time()
        links.look_after(now, lambda node, _: dead.append(node))
        links.look_after(now + 5.0, lambda node, _: dead.append(node))  # as after five seconds without the CPU
        assert len(links.neighbours) == 1 and not dead
        for tenth in range(1, 25):  # it listens again, and nothing comes
            links.look_after(now + 5.0 + tenth / 10, lambda node, _: dead.append(node))
        assert len(dead) == 1

    run_case(tmp_path, case)


def test_a_stopped_node_dials_nobody_whom_libtorrent_still_finds(tmp_path: Path) -> None:
    async def case(lab: Lab, _: TorrentOnLoopback) -> None:
        one, links = await _pair(lab)
        await one.engine.stop()
        links.dial("127.0.0.1", 9, None)
        assert not links._dialling

    run_case(tmp_path, case)
