"""Starting and stopping: what is being served is finished, within a bounded time."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from conftest import HUB_ALPINE, Running, request
from mirror_fakes import FakeSource, Flight, connected, read_answer

from p2pdist.errors import ConfigError
from p2pdist.mirror import MirrorServer, MirrorSettings
from p2pdist.mirror.deadlines import Deadlines
from p2pdist.oci import Digest


async def test_a_body_on_its_way_is_finished_and_no_new_connection_accepted(tmp_path: Path) -> None:
    source = FakeSource()
    data = os.urandom(1 << 20) * 32
    flight = Flight(tmp_path / "blob", data).prove()
    source.flights[flight.digest] = flight
    async with MirrorServer(source, MirrorSettings(stop=30.0), port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
        await reader.readuntil(b"\r\n\r\n")
        stopping = asyncio.ensure_future(server.__aexit__(None, None, None))
        got = bytearray()
        while piece := await reader.read(1 << 20):  # until the mirror closes: no keep-alive any more
            got += piece
        assert got == data
        writer.close()
        await writer.wait_closed()
        await stopping
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", server.port)
    assert flight.released == 1


async def test_what_has_not_begun_is_404_before_the_end_and_the_rest_is_cut(tmp_path: Path) -> None:
    source = FakeSource()
    waiting, half = Flight(tmp_path / "waiting", b"waiting"), Flight(tmp_path / "half", b"half" * 1000)
    half.arrive(2000)
    source.flights |= {waiting.digest: waiting, half.digest: half}
    hanging = Digest.of(b"hanging")
    source.flights[hanging] = asyncio.Event()
    source.manifests[HUB_ALPINE, "latest"] = asyncio.Event()
    settings = MirrorSettings(stop=0.5, decide_deadline=0.1, header_deadline=0.1)
    slow = MirrorSettings(stop=0.5)
    async with MirrorServer(source, slow, port=0) as server, MirrorServer(source, settings, port=0) as following:
        targets = [f"blobs/{waiting.digest}", f"blobs/{hanging}", "manifests/latest"]
        async with (
            connected(server.port) as first,
            connected(server.port) as second,
            connected(server.port) as third,
            connected(following.port) as fourth,
        ):
            for (_, writer), target in zip((first, second, third), targets, strict=True):
                writer.write(request(f"/v2/library/alpine/{target}"))
            fourth[1].write(request(f"/v2/library/alpine/blobs/{half.digest}"))
            await waiting.joined.wait()
            await fourth[0].readuntil(b"\r\n\r\n")
            await asyncio.gather(server.__aexit__(None, None, None), following.__aexit__(None, None, None))
            for reader, _ in (first, second, third):
                answer = await read_answer(reader)
                assert answer.status == 404
                assert answer.headers["connection"] == "close"
                assert await reader.read() == b""
            assert await fourth[0].read() == (b"half" * 1000)[:2000]
    assert (waiting.released, half.released) == (1, 1)


async def test_stop_takes_no_longer_than_it_may_though_a_client_does_not_read(tmp_path: Path) -> None:
    source = FakeSource()
    flight = Flight(tmp_path / "blob", bytes(32 << 20)).prove()
    source.flights[flight.digest] = flight
    loop = asyncio.get_running_loop()
    async with MirrorServer(source, MirrorSettings(stop=0.2), port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.transport.pause_reading()
        writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
        await flight.joined.wait()
        began = loop.time()
    assert loop.time() - began < 5.0
    assert (flight.released, flight.open_files) == (1, 0)
    writer.transport.abort()
    assert reader is not None


async def test_stop_does_not_wait_for_idle_connections(mirror: Running) -> None:
    loop = asyncio.get_running_loop()
    async with connected(mirror.port) as (reader, writer), connected(mirror.port) as (silent, _):
        writer.write(request("/v2/"))
        await read_answer(reader)
        began = loop.time()
        await mirror.server.__aexit__(None, None, None)
        assert loop.time() - began < 0.4  # the whole time to stop is 0.5
        assert await reader.read() == b""
        assert await silent.read() == b""


async def test_once_the_time_is_up_nothing_is_waited_for_any_more() -> None:
    deadlines = Deadlines()
    deadlines.end()
    with pytest.raises(TimeoutError):
        async with deadlines.by(None):
            await asyncio.Event().wait()
    async with deadlines.within(60.0):
        pass  # what needn't wait still goes through


async def test_port_that_is_taken_is_named(mirror: Running) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{mirror.port}"):
        async with MirrorServer(FakeSource(), MirrorSettings(), port=mirror.port):
            pass
