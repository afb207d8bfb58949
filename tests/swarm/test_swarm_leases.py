"""What the tracker says is done and answered: leases, the lone stream and its recall, pauses, refusals."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from swarm.swarm_script import CHUNK, Script, play

from p2pdist.errors import UpstreamDenied, UpstreamNotFound, UpstreamThrottled, UpstreamUnreachable
from p2pdist.protocol import messages as wire

DATA = random.Random(3).randbytes(6 * CHUNK + 100)
COUNT = 7


def test_a_leased_chunk_is_reported_at_half_and_whole_with_this_nodes_signature(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 2, 2)
        await script.until(lambda: exchange.have == 0b1100)
        await script.until(lambda: not script.engine.leases)
        kinds = [(type(one), one.index) for one in script.tracker.sent if isinstance(one, wire.Half | wire.Got)]
        assert kinds == [(wire.Half, 2), (wire.Got, 2), (wire.Half, 3), (wire.Got, 3)]
        got = script.tracker.got(wire.Got)[0]
        assert script.attestor.membership is not None
        attestation = wire.Attestation(got.sha256, script.attestor.membership, got.signature)
        assert script.member().fault(attestation, exchange.name, CHUNK, 2, 0.0) is None
        assert script.registry.reads == [(2, 4)]

    play(tmp_path, case)


def test_a_lease_for_chunks_that_are_here_is_answered_without_a_read(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 1, 2)
        script.lease(transfer, 1, 2)
        await script.until(lambda: len(script.tracker.got(wire.Got)) == 2)
        assert script.registry.reads == []

    play(tmp_path, case)


def test_a_lone_lease_is_one_read_and_a_recall_ends_it_after_the_chunk_at_hand(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 0, COUNT, alone=True)
        await script.until(lambda: exchange.have.bit_count() == 2)
        script.swarms.tracker_message(wire.Recall(exchange.name))
        await script.until(lambda: bool(script.tracker.got(wire.Returned)))
        assert script.registry.reads == [(0, COUNT)]
        returned = script.tracker.got(wire.Returned)[0]
        assert int.from_bytes(returned.have, "little") == exchange.have
        assert 2 <= exchange.have.bit_count() <= 4
        assert not script.tracker.got(wire.Got)
        assert not transfer.alone

    play(tmp_path, case)


@pytest.mark.parametrize("staged", [True, False])
def test_a_recall_that_comes_before_the_stream_began_is_answered_and_ends_it(tmp_path: Path, staged: bool) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        digest = str(transfer.blob.digest)
        if staged:
            await script.joined(transfer)
        else:  # all in one frame
            await script.until(lambda: bool(script.tracker.got(wire.Join)))
            script.swarms.tracker_message(wire.Joined(digest, [wire.Swarm(digest, CHUNK, 2, 0)], []))
        script.lease(transfer, 0, COUNT, alone=True)
        script.swarms.tracker_message(wire.Recall(digest))
        await script.until(lambda: bool(script.tracker.got(wire.Returned)))
        await asyncio.sleep(1.0)
        assert script.tracker.got(wire.Returned) == [wire.Returned(digest, b"\0")]
        assert script.registry.reads == []

    play(tmp_path, case)


def test_a_lone_stream_stores_the_blob_and_says_so_once(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        await script.joined(transfer)
        script.lease(transfer, 0, COUNT, alone=True)
        stored = await transfer.done
        assert stored.size == len(DATA)
        assert [one.digest for one in script.tracker.got(wire.Done)] == [str(transfer.blob.digest)]
        assert script.swarms.bytes_from_upstream == len(DATA)
        assert script.swarms.transfers == []

    play(tmp_path, case)


@pytest.mark.parametrize(
    ("error", "status", "final"),
    [
        (UpstreamThrottled("slow down", status=429, retry_after=2.0), 429, False),
        (UpstreamUnreachable("no route"), 0, False),
        (UpstreamNotFound("gone", status=404), 404, True),
        (UpstreamDenied("no", status=403), 403, True),
    ],
)
def test_a_leased_read_that_fails_is_told_and_the_tracker_decides(
    tmp_path: Path, error: Exception, status: int, final: bool
) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 1)
        script.registry.errors.append(error)
        script.lease(transfer, 1, 2)
        await script.until(lambda: bool(script.tracker.got(wire.Failed)))
        failed = script.tracker.got(wire.Failed)[0]
        assert (failed.index, failed.status, failed.final) == (2, status, final)  # what is missing, not what is here
        await script.until(lambda: not script.engine.leases)
        assert not transfer.done.done()

    play(tmp_path, case)


@pytest.mark.parametrize(("status", "kind"), [(404, UpstreamNotFound), (403, UpstreamDenied)])
def test_gone_reaches_everyone_who_waits(tmp_path: Path, status: int, kind: type[Exception]) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        waiting = [asyncio.ensure_future(asyncio.shield(transfer.done)) for _ in range(3)]
        script.swarms.tracker_message(wire.Gone(exchange.name, status))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in results] == [kind] * 3
        assert script.engine.exchanges == []
        await script.until(lambda: script.swarms.transfers == [])

    play(tmp_path, case)


def test_while_the_upstream_wants_a_pause_no_read_begins(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        await script.joined(transfer)
        now = asyncio.get_running_loop().time()
        script.swarms.tracker_message(wire.Throttle(script.registry.name, 5.0))
        script.lease(transfer, 0)
        await script.until(lambda: bool(script.tracker.got(wire.Got)))
        assert script.registry.began[0] >= now + 4.99

    play(tmp_path, case)


def test_a_tracker_that_comes_back_hears_what_is_here(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.swarms.tracker_message(wire.Pong(9))
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, script.member(), 0, 3)
        script.tracker.connected = False
        script.swarms.tracker_state(False)
        script.swarms.tracker_state(False)
        assert script.engine.orphans == [9]
        script.tracker.connected = True
        script.swarms.tracker_state(True)
        assert script.engine.orphans == [9, None]
        script.tracker.sent.clear()
        assert script.attestor.membership is not None and script.attestor.cluster_key is not None
        script.swarms.tracker_message(wire.Welcome(script.attestor.membership, script.attestor.cluster_key, 30.0, 9))
        want = script.tracker.got(wire.Join)[0].wants[0]
        assert (want.digest, want.chunk_size, want.have) == (exchange.name, CHUNK, b"\x09")

    play(tmp_path, case)
