"""A transfer with no help, with too little, and with none wanted: own reads, giving up, trouble on the disk, seeds."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from swarm.swarm_script import CHUNK, NOW, Script, play

from p2pdist.errors import DiskFull, StorageError, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_size_for
from p2pdist.swarm.service import SwarmSettings

DATA = random.Random(4).randbytes(6 * CHUNK + 100)
COUNT = 7
PEER = wire.PeerInfo(b"p" * 32, "peer", 1)


def test_with_no_tracker_and_no_peer_the_blob_is_read_at_once(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        began = asyncio.get_running_loop().time()
        stored = await script.want(DATA).done
        assert stored.size == len(DATA)
        assert script.registry.reads == [(0, COUNT)]
        assert asyncio.get_running_loop().time() - began < 1.0

    play(tmp_path, case, connected=False)


def test_neighbours_of_an_earlier_run_are_given_a_moment_first(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.swarms.known = [PEER]
        transfer = script.want(DATA)
        await script.until(lambda: script.engine.linked == [PEER])
        script.engine.linked.clear()  # nobody answers
        began = asyncio.get_running_loop().time()
        await transfer.done
        assert script.registry.began[0] - began >= 0.9

    play(tmp_path, case, connected=False)


def test_a_tracker_that_does_not_answer_a_join_is_done_without(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        began = asyncio.get_running_loop().time()
        await transfer.ready.wait()
        assert 0.9 <= asyncio.get_running_loop().time() - began <= 1.1
        assert transfer.exchange is not None
        assert transfer.exchange.chunk_size == chunk_size_for(len(DATA), len(DATA))

    play(tmp_path, case)


def test_a_rollout_that_stands_still_is_read_from_upstream_after_ten_seconds(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 0, 4)
        moved = asyncio.get_running_loop().time()
        await transfer.done
        assert 9.9 <= script.registry.began[0] - moved <= 10.6
        assert sorted(script.registry.chunks) == [1, 2, 3, 5, 6]

    play(tmp_path, case)


def test_chunks_that_come_now_and_then_keep_the_upstream_untouched(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        member = script.member()
        for index in range(COUNT - 1):
            script.bring(exchange, DATA, member, index)
            await asyncio.sleep(8.0)
        assert script.registry.reads == []
        script.bring(exchange, DATA, member, COUNT - 1)
        await transfer.done

    play(tmp_path, case)


def test_a_blob_that_nobody_waits_for_any_more_is_given_up_after_the_linger_and_resumed_later(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 0, 1)
        await asyncio.sleep(100.0)
        assert not transfer.done.done()  # a client waits, as long as it likes
        transfer.clients -= 1
        left = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamUnreachable, match="nobody waits"):
            await asyncio.shield(transfer.done)
        assert 29.0 <= asyncio.get_running_loop().time() - left <= 31.0
        assert script.tracker.got(wire.Leave)
        await script.until(lambda: script.swarms.transfers == [])
        again = script.want(DATA)
        await again.ready.wait()
        assert again.exchange is not None
        assert again.exchange.have == 0b11

    play(tmp_path, case, SwarmSettings(linger_seconds=30.0, stuck_seconds=1e9))


def test_a_missing_blob_ends_the_transfer_at_once_where_no_tracker_decides(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.registry.errors.append(UpstreamNotFound("gone", status=404))
        with pytest.raises(UpstreamNotFound):
            await script.want(DATA).done
        assert len(script.registry.reads) == 1

    play(tmp_path, case, connected=False)


def test_a_stream_that_brings_nothing_three_times_ends_the_transfer_and_a_cut_one_goes_on(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.registry.errors += [UpstreamUnreachable("cut")] * 2
        await script.want(DATA).done
        other = DATA[::-1]
        script.registry.errors += [UpstreamUnreachable("cut")] * 3
        with pytest.raises(UpstreamUnreachable):
            await script.want(other).done

    play(tmp_path, case, connected=False)


def test_a_full_disk_under_a_read_ends_the_transfer_with_that_error(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)

        def full(*_: object) -> None:
            raise DiskFull("no room")

        exchange.write = full  # type: ignore[method-assign]
        script.lease(transfer, 0, 1)
        with pytest.raises(DiskFull):
            await transfer.done
        assert script.engine.exchanges == []

    play(tmp_path, case)


def test_a_disk_that_fails_under_the_engine_ends_the_transfer_with_that_error(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        exchange.broken(StorageError("input/output error"))
        with pytest.raises(StorageError, match="input/output"):
            await transfer.done

    play(tmp_path, case)


def test_a_blob_that_ends_while_it_is_staged_leaves_no_file_open(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        digest = str(transfer.blob.digest)
        await script.until(lambda: bool(script.tracker.got(wire.Join)))
        script.swarms.tracker_message(wire.Joined(digest, [wire.Swarm(digest, CHUNK, 1, 0)], []))
        await asyncio.sleep(0)
        script.swarms.tracker_message(wire.Gone(digest, 404))
        with pytest.raises(UpstreamNotFound):
            await asyncio.shield(transfer.done)
        await asyncio.sleep(5.0)
        assert script.engine.exchanges == []
        staging = await script.store.stage(transfer.blob.digest, len(DATA), CHUNK)  # StorageError if it is open
        await staging.close()

    play(tmp_path, case)


def test_an_answer_to_a_join_that_comes_as_the_wait_for_it_ends_stages_once(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        digest = str(transfer.blob.digest)
        await asyncio.sleep(1.0)
        for chunk_size in (2 * CHUNK, CHUNK):
            script.swarms.tracker_message(wire.Joined(digest, [wire.Swarm(digest, chunk_size, 2, 0)], []))
        await asyncio.sleep(1.0)
        assert not transfer.done.done()
        assert [exchange.chunk_size for exchange in script.engine.exchanges] == [CHUNK]

    play(tmp_path, case)


def test_a_stored_blob_is_opened_for_a_peer_that_asks_and_seeds_are_bounded(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        blobs = [random.Random(seed).randbytes(CHUNK + seed) for seed in range(4)]
        for data in blobs:
            await script.store.put(data, Digest.of(data))
        for data in blobs:
            for _ in range(3):  # asked for by many, opened once
                script.swarms.wanted_by_peer(str(Digest.of(data)), len(data), CHUNK)
        await script.until(lambda: len(script.engine.exchanges) >= 2)
        await asyncio.sleep(1.0)
        assert [exchange.name for exchange in script.engine.exchanges] == [str(Digest.of(data)) for data in blobs[2:]]
        assert script.swarms.seeds == 2
        assert script.engine.added == 4

    play(tmp_path, case, SwarmSettings(live_seeds=2))


@pytest.mark.parametrize(
    ("digest", "size", "chunk_size"),
    [
        ("sha256:" + "0" * 64, len(DATA), CHUNK),
        ("nonsense", len(DATA), CHUNK),
        (str(Digest.of(DATA)), len(DATA) + 1, CHUNK),
        (str(Digest.of(DATA)), len(DATA), CHUNK - 1),
    ],
)
def test_nothing_is_opened_for_a_peer_that_asks_for_what_is_not_here(
    tmp_path: Path, digest: str, size: int, chunk_size: int
) -> None:
    async def case(script: Script) -> None:
        await script.store.put(DATA, Digest.of(DATA))
        script.swarms.wanted_by_peer(digest, size, chunk_size)
        await asyncio.sleep(1.0)
        assert script.engine.exchanges == []

    play(tmp_path, case)


def test_a_seed_whose_file_rotted_is_not_opened_and_the_tracker_hears_of_it(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        digest = Digest.of(DATA)
        await script.store.put(DATA, digest)
        file = next(path for path in tmp_path.rglob(f"*{digest.hex}*") if path.is_file())
        file.chmod(0o600)
        file.write_bytes(b"\0" * len(DATA))
        script.swarms.wanted_by_peer(str(digest), len(DATA), CHUNK)
        await script.until(lambda: bool(script.tracker.got(wire.Drops)))
        assert script.engine.exchanges == []

    play(tmp_path, case)


def test_a_blob_evicted_after_it_was_asked_for_is_fetched_again(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        await script.want(DATA).done
        assert script.swarms.seeds == 0
        await script.store.remove(Digest.of(DATA))
        assert (await script.want(DATA).done).size == len(DATA)
        assert len(script.registry.reads) == 2

    play(tmp_path, case, SwarmSettings(live_seeds=0), connected=False)


def test_an_agent_that_stops_tells_who_waits_and_keeps_what_it_has(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 2)
        await script.stop()
        with pytest.raises(StorageError, match="stopping"):
            await transfer.done
        other = DATA[::-1]
        await script.store.put(other, Digest.of(other))
        script.swarms.wanted_by_peer(str(Digest.of(other)), len(other), CHUNK)  # the engine stops later
        assert script.engine.exchanges == []
        assert [(str(digest), size) for digest, size, _ in script.store.partials()] == [
            (str(transfer.blob.digest), len(DATA))
        ]

    play(tmp_path, case)


def test_a_banned_member_is_shut_out_until_the_tracker_said(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        liar = b"l" * 32
        script.swarms.tracker_message(wire.Banned(liar, int(NOW) + 60))
        assert script.engine.bans == [liar]
        assert script.attestor.banned(liar, NOW + 59)
        assert not script.attestor.banned(liar, NOW + 60)

    play(tmp_path, case)
