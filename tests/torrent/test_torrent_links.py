"""Control links: who is silent, and what a node that is stopping or was held up does about it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
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


def test_strangers_who_are_too_many_say_nothing_or_nonsense_are_closed_and_counted(tmp_path: Path) -> None:
    async def case(lab: Lab, _: TorrentOnLoopback) -> None:
        one = await lab.node("one")
        where = (one.host_name, one.engine.port)
        silent = [await asyncio.open_connection(*where) for _ in range(4)]
        await until(lambda: isinstance(one.engine, TorrentEngine) and len(one.engine._parts.links._strangers) == 4)
        late = await asyncio.open_connection(*where)
        await _until_closed(late[0])
        assert one.engine.stats.refused_connections == 1
        for reader, _writer in silent:
            await _until_closed(reader)
        assert one.engine.stats.slow_connections == 4
        loud = await asyncio.open_connection(*where)
        loud[1].write(b"\xff" * 4096)
        await _until_closed(loud[0])
        assert one.engine.stats.bad_requests == 1
        for _reader, writer in (*silent, late, loud):
            writer.close()
        other = await lab.node("other")
        other.engine.link([one.info])
        await until(lambda: len(one.engine.links()) == 1)

    run_case(tmp_path, case, max_links=2)


def test_there_are_as_many_links_as_may_be_and_who_comes_then_is_counted(tmp_path: Path) -> None:
    async def case(lab: Lab, _: TorrentOnLoopback) -> None:
        one, *others = [await lab.node(name) for name in ("one", "a", "b", "c")]
        for count, other in enumerate(others[:2], 1):
            other.engine.link([one.info])
            await until(lambda count=count: len(one.engine.links()) == count)
        others[2].engine.link([one.info])
        await until(lambda: one.engine.stats.refused_connections == 1)
        assert len(one.engine.links()) == 2 and one.engine.stats.bad_requests == 0

    run_case(tmp_path, case, max_links=2)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        async with asyncio.timeout(30):
            await reader.read()
