"""What is on disk at the start: a partial, a stale file and a foreign one never make a false seed."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import live_of, run_case

from p2pdist.oci import Digest
from p2pdist.torrent.engine import TorrentEngine

CHUNK = 64 * 1024
DATA = random.Random(4).randbytes(16 * CHUNK)
COUNT = 16
DIGEST = Digest.of(DATA)


async def _pieces(node: Node) -> int:
    """How many pieces libtorrent itself would serve."""
    loaded = live_of(node).current
    assert loaded is not None
    handle = loaded.session._handles[loaded.metainfo.key]
    return sum((await asyncio.to_thread(handle.status)).pieces)


async def _leave(node: Node) -> None:
    """The process ends; what is proved stays on disk."""
    await node.engine.stop()
    assert node.exchange is not None
    await node.exchange.close()
    node.exchange = None
    await node.store.close()


async def _again(lab: Lab, network: TorrentOnLoopback, name: str) -> Node:
    return await lab.node(name)


def test_a_restart_over_a_partial_fetches_what_is_missing_and_serves_what_is_there(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        first = await lab.node("one")
        await lab.fetch(first, DATA, CHUNK)
        for index in range(10):
            lab.give(first, DATA, index)
        await _leave(first)

        one, two = await lab.node("one"), await lab.node("two")
        resumed, other = await lab.fetch(one, DATA, CHUNK), await lab.fetch(two, DATA, CHUNK)
        assert resumed.have.bit_count() == 10
        two.engine.link([one.info])
        await until(lambda: other.have.bit_count() == 10)
        for index in range(10, COUNT):
            lab.give(two, DATA, index)
        await until(lambda: resumed.whole and other.whole)
        await until(lambda: bool(one.engine.stats.bytes_in))
        assert one.engine.stats.bytes_in == 6 * CHUNK  # what was there did not travel again
        await resumed.commit(one.store)
        assert resumed.read(0, len(DATA)) == DATA

    run_case(tmp_path, case)


def test_a_stale_file_with_other_bytes_in_it_is_no_seed(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        first = await lab.node("one")
        await lab.fetch(first, DATA, CHUNK)
        lab.give(first, DATA, 3)
        await _leave(first)
        part = next((tmp_path / "one" / "staging").glob("*.part"))
        with part.open("r+b") as file:  # all but the proved chunk is left from something else
            for index in set(range(COUNT)) - {3}:
                os.pwrite(file.fileno(), b"\xaa" * CHUNK, index * CHUNK)
        (tmp_path / "torrent-one").mkdir(exist_ok=True)
        stale = tmp_path / "torrent-one" / "scratch-0123456789abcdef"
        stale.write_bytes(b"\xaa" * len(DATA))

        one, two = await lab.node("one"), await lab.node("two")
        assert not stale.exists()
        await lab.fetch(one, DATA, CHUNK)
        other = await lab.fetch(two, DATA, CHUNK)
        two.engine.link([one.info])
        await until(lambda: other.have == 1 << 3)
        await until(lambda: live_of(two).connections == 1)
        assert await _pieces(one) == 1
        await asyncio.sleep(0.5)
        assert other.have == 1 << 3 == live_of(two).arrived

    run_case(tmp_path, case)


def test_a_foreign_file_of_the_blobs_name_is_neither_taken_nor_touched(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        directory = tmp_path / "torrent-one"
        directory.mkdir()
        foreign = [directory / DIGEST.hex, directory / str(DIGEST)]
        for path in foreign:
            path.write_bytes(b"\xbb" * len(DATA))
        one, two = await lab.node("one"), await lab.node("two")
        exchange, other = await lab.fetch(one, DATA, CHUNK), await lab.fetch(two, DATA, CHUNK)
        lab.link_all()
        await until(lambda: live_of(two).connections > 0)
        assert await _pieces(one) == 0
        for index in range(COUNT):
            lab.give(two, DATA, index)
        await until(lambda: exchange.whole)
        assert other.whole
        assert all(path.read_bytes() == b"\xbb" * len(DATA) for path in foreign)
        await exchange.commit(one.store)
        assert exchange.read(0, len(DATA)) == DATA

    run_case(tmp_path, case)


def test_a_crash_at_any_moment_leaves_no_file_of_the_engine(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        await lab.fetch(one, DATA, CHUNK)
        await lab.fetch(two, DATA, CHUNK)
        lab.link_all()
        for index in range(COUNT):
            lab.give(one, DATA, index)
            assert not list((tmp_path / "torrent-one").iterdir())  # what a crash now would leave
        await until(lambda: bool(two.exchange and two.exchange.whole))
        assert isinstance(two.engine, TorrentEngine)
        assert live_of(two).scratch >= 0
        assert not list((tmp_path / "torrent-two").iterdir())

    run_case(tmp_path, case)
