"""Another tracker takes over in the middle: it hears what is being read, and nothing is read twice because of it."""

from __future__ import annotations

import random
from pathlib import Path

from swarm.swarm_script import CHUNK, Script, play

from p2pdist.errors import PeerError
from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.crossing import Crossing
from p2pdist.swarm.exchange import Exchange

DATA = random.Random(4).randbytes(6 * CHUNK + 100)
COUNT = 7
SOURCE = PeerInfo(b"s" * 32, "there", 1, zone="other")


def another_tracker(script: Script) -> wire.Want:
    """What it hears of the one blob."""
    script.tracker.sent.clear()
    assert script.attestor.membership is not None and script.attestor.cluster_key is not None
    script.swarms.tracker_state(False)
    script.swarms.tracker_message(wire.Welcome(script.attestor.membership, script.attestor.cluster_key, 30.0, 9))
    script.swarms.tracker_state(True)
    return script.tracker.got(wire.Join)[0].wants[0]


def test_a_stream_that_runs_is_said_again_and_not_begun_a_second_time(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 0, COUNT, alone=True)
        await script.until(lambda: exchange.have.bit_count() == 2)
        want = another_tracker(script)
        assert want.streaming and want.have == exchange.bitmap()
        script.lease(transfer, 2, COUNT - 2, alone=True)
        await script.until(lambda: exchange.whole)
        assert script.registry.reads == [(0, COUNT)]

    play(tmp_path, case)


def test_leased_chunks_under_way_are_said_again(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 2, 2)
        await script.until(lambda: bool(script.tracker.got(wire.Half)))
        want = another_tracker(script)
        assert want.reading == [2, 3] and not want.streaming
        await script.until(lambda: exchange.have == 0b1100)
        await script.until(lambda: not script.engine.leases)
        assert another_tracker(script).reading == []

    play(tmp_path, case)


def crossing(script: Script, carry) -> None:
    service = script.swarms
    service._crossing = Crossing(carry, script.engine, script.tracker, service._transfers, service._reader)


def test_a_chunk_from_another_zone_is_reported_like_one_from_upstream(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        reader = script.member()

        async def carry(exchange: Exchange, index: int, source: PeerInfo, half) -> None:
            assert source == SOURCE
            half()
            script.bring(exchange, DATA, reader, index)

        crossing(script, carry)
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.swarms.tracker_message(wire.Lease(exchange.name, 4, 1, source=SOURCE))
        await script.until(lambda: bool(script.tracker.got(wire.Got)))
        kinds = [(type(one), one.index) for one in script.tracker.sent if isinstance(one, wire.Half | wire.Got)]
        assert kinds == [(wire.Half, 4), (wire.Got, 4)]
        assert script.registry.reads == [] and exchange.have == 1 << 4
        await script.until(lambda: not script.engine.leases)

    play(tmp_path, case)


def test_a_chunk_that_another_zone_does_not_give_goes_back_to_the_tracker_and_blames_no_upstream(
    tmp_path: Path,
) -> None:
    async def case(script: Script) -> None:
        async def carry(exchange: Exchange, index: int, source: PeerInfo, half) -> None:
            raise PeerError("nobody there", peer=source.node.hex())

        crossing(script, carry)
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.swarms.tracker_message(wire.Lease(exchange.name, 4, 1, source=SOURCE))
        await script.until(lambda: bool(script.tracker.got(wire.Failed)))
        (failed,) = script.tracker.got(wire.Failed)
        assert (failed.index, failed.status, failed.final) == (4, 0, False)
        await script.until(lambda: not script.engine.leases)
        assert not transfer.done.done() and transfer.reads == 0

    play(tmp_path, case)
