"""With no tracker, an engine that finds others by itself gets the time for it, and then shares what is to be read."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from swarm.swarm_script import CHUNK, Script, play

from p2pdist.protocol import messages as wire

DATA = random.Random(4).randbytes(6 * CHUNK + 100)
PEER = wire.PeerInfo(b"p" * 32, "peer", 1)


def test_nothing_is_read_from_upstream_while_others_may_still_be_found(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.engine.discovery = 2.0
        began = asyncio.get_running_loop().time()
        await script.want(DATA).done
        assert 2.0 <= script.registry.began[0] - began <= 2.6

    play(tmp_path, case, connected=False)


def test_a_stream_ends_when_somebody_is_found_and_the_engine_says_who_reads_what(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.engine.discovery = 2.0
        held = asyncio.Event()
        script.registry.gate = held.wait
        transfer = script.want(DATA)
        await script.until(lambda: bool(script.registry.began))
        script.engine.linked = [PEER]
        await script.until(lambda: transfer.recalled)
        held.set()
        await script.until(lambda: not transfer.alone)
        exchange = transfer.exchange
        assert exchange is not None and not exchange.whole
        index = next(index for index in range(exchange.count) if not exchange.have >> index & 1)
        script.swarms.read_alone(exchange, index)
        await script.until(lambda: bool(exchange.have >> index & 1))
        assert len(script.registry.reads) == 2
        await transfer.done  # what nobody brings for ten seconds is read here after all
        assert not transfer.recalled

    play(tmp_path, case, connected=False)


def test_an_engine_that_finds_nobody_by_itself_is_not_waited_for(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        began = asyncio.get_running_loop().time()
        held = asyncio.Event()
        script.registry.gate = held.wait
        transfer = script.want(DATA)
        await script.until(lambda: bool(script.registry.began))
        assert script.registry.began[0] - began < 0.5
        script.engine.linked = [PEER]
        await asyncio.sleep(1.0)
        assert not transfer.recalled
        held.set()
        await transfer.done

    play(tmp_path, case, connected=False)
