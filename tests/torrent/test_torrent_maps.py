"""Chunk maps, and the bound on what libtorrent has loaded."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, until
from torrent.torrent_lab import live_of, run_case

from p2pdist.oci import Digest
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.live import COLD, MAPPED

CHUNK = 64 * 1024
DATA = random.Random(8).randbytes(40 * CHUNK + 17)


def test_late_joiners_fetch_by_the_chunk_map_where_libtorrent_checks_every_piece(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holders = [await lab.node(f"holder{i}") for i in range(2)]
        for holder in holders:
            await lab.seed(holder, DATA, CHUNK)
        late = [await lab.node(f"late{i}") for i in range(3)]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in late]
        lab.link_all()
        await until(lambda: all(exchange.whole for exchange in exchanges))
        assert all(live_of(node).want == MAPPED for node in late)
        for node, exchange in zip(late, exchanges, strict=True):
            await exchange.commit(node.store)

    run_case(tmp_path, case)


def test_a_map_that_is_false_costs_seconds_and_not_the_blob(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        liar, late = await lab.node("liar"), await lab.node("late")
        await lab.seed(liar, DATA, CHUNK)
        live_of(liar).hashes = random.Random(9).randbytes(20 * 41)  # its torrent, like its map, is of other bytes
        exchange = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([liar.info])
        await until(lambda: live_of(late).want == MAPPED)
        assert not exchange.have
        await until(lambda: live_of(late).want == COLD)
        await until(lambda: exchange.whole)

    run_case(tmp_path, case)


def test_a_node_that_has_some_of_the_blob_stays_in_the_cold_swarm(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holder, late = await lab.node("holder"), await lab.node("late")
        await lab.seed(holder, DATA, CHUNK)
        exchange = await lab.fetch(late, DATA, CHUNK)
        lab.give(late, DATA, 0)
        late.engine.link([holder.info])
        await until(lambda: exchange.whole)
        assert live_of(late).want == COLD

    run_case(tmp_path, case)


def test_of_many_stored_blobs_only_a_bounded_number_is_loaded_and_all_can_be_had(tmp_path: Path) -> None:
    blobs = [random.Random(n).randbytes(3 * CHUNK) for n in range(6)]

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holder, late = await lab.node("holder"), await lab.node("late")
        exchanges: list[Exchange] = []
        stored = [await lab.seed(holder, data, CHUNK) for data in blobs]
        engine = holder.engine
        assert isinstance(engine, TorrentEngine)
        late.engine.link([holder.info])
        await until(lambda: bool(late.engine.links()))
        most = 0
        for data in blobs:
            staging = await late.store.stage(Digest.of(data), len(data), CHUNK)
            exchange = Exchange(Digest.of(data), len(data), CHUNK, late.attestor, lambda: 0.0, staging=staging)
            exchanges.append(exchange)
            late.engine.add(exchange)
        async with asyncio.timeout(60):
            while not all(exchange.whole for exchange in exchanges):
                most = max(most, sum(bool(live.want) for live in engine._parts.lives.values()))
                await asyncio.sleep(0.01)
        assert most == 2
        for node, exchange in [*((late, one) for one in exchanges), *((holder, one) for one in stored)]:
            node.engine.remove(exchange)
            await exchange.close()
        holder.exchange = None

    run_case(tmp_path, case, max_torrents=2)


def test_a_blob_that_nobody_wants_any_more_is_unloaded(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holder, late = await lab.node("holder"), await lab.node("late")
        await lab.seed(holder, DATA, CHUNK)
        exchange = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([holder.info])
        await until(lambda: exchange.whole)
        live = live_of(holder)
        assert live.loaded
        live.wanted_at -= 31.0
        await until(lambda: not live.loaded)
        await exchange.commit(late.store)
        await until(lambda: not live_of(late).loaded)  # its scratch file is gone as well
        await until(lambda: live_of(late).scratch == -1)

    run_case(tmp_path, case)


def test_what_a_node_fetched_it_serves_from_the_stored_blob_afterwards(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        first, second, third = [await lab.node(name) for name in ("first", "second", "third")]
        await lab.seed(first, DATA, CHUNK)
        exchange = await lab.fetch(second, DATA, CHUNK)
        second.engine.link([first.info])
        await until(lambda: exchange.whole)
        await exchange.commit(second.store)
        await until(lambda: not live_of(second).loaded)
        await first.engine.stop()
        before = second.store._index.get(exchange.digest)
        last = await lab.fetch(third, DATA, CHUNK)
        third.engine.link([PeerInfo(second.attestor.node, second.host_name, second.engine.port)])
        await until(lambda: last.whole)
        assert second.store._index.get(exchange.digest) == before
        blob = await second.store.open_blob(exchange.digest)  # its stamp holds: libtorrent touched nothing of it
        assert blob is not None
        blob.close()
        assert second.store._index.get(exchange.digest) is not None
        assert (second.store._index.get(exchange.digest) or before).verified == before.verified  # type: ignore[union-attr]

    run_case(tmp_path, case)


def test_a_blob_that_is_left_and_joined_again_at_once_goes_on(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        exchange, other = await lab.fetch(one, DATA, CHUNK), await lab.fetch(two, DATA, CHUNK)
        lab.link_all()
        await until(lambda: live_of(one).current is not None and live_of(two).connections > 0)
        for index in range(41):
            lab.give(two, DATA, index)
            if index % 4 == 0:
                one.engine.remove(exchange)
                one.engine.add(exchange)
                await asyncio.sleep(0.01 * (index % 3))
        await until(lambda: exchange.whole and other.whole)
        await exchange.commit(one.store)
        assert exchange.read(0, len(DATA)) == DATA

    run_case(tmp_path, case)
