"""Blobs that take long: chunk by proved chunk in `auto`, nothing before the proof in `proved`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from conftest import Running, request
from mirror_fakes import Flight, connected, read_answer
from structlog.testing import capture_logs

from p2pdist.errors import DigestMismatch, UpstreamUnreachable

MIB = 1 << 20
DATA = bytes(range(256)) * 4096 * 3  # three chunks of 1 MiB
LATE = {"decide_deadline": 0.03, "header_deadline": 0.06}  # so that following starts soon
Start = Callable[..., Awaitable[Running]]


def target(flight: Flight) -> str:
    return f"/v2/library/alpine/blobs/{flight.digest}"


def arriving(mirror: Running, upto: int = MIB, *, size_known: bool = True) -> Flight:
    flight = mirror.flight(DATA, size_known=size_known)
    flight.arrive(upto)
    return flight


async def test_slow_blob_begins_before_it_is_proved_and_ends_after(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    async with connected(mirror.port) as (reader, writer):
        writer.write(request(target(flight)))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 OK\r\n" in head
        assert f"Content-Length: {len(DATA)}\r\n".encode() in head
        assert await reader.readexactly(MIB) == DATA[:MIB]
        flight.arrive(2 * MIB)
        assert await reader.readexactly(MIB) == DATA[MIB : 2 * MIB]
        flight.prove()
        assert await reader.readexactly(MIB) == DATA[2 * MIB :]
    assert await mirror.told() == ("blob", 200, len(DATA))
    assert (flight.released, flight.closed_streams) == (1, 1)


async def test_blob_that_is_proved_in_time_is_never_followed(start: Start) -> None:
    mirror = await start(decide_deadline=0.03, header_deadline=30.0)
    flight = arriving(mirror)
    asking = asyncio.ensure_future(mirror.blob(flight.digest))
    await flight.joined.wait()
    loop = asyncio.get_running_loop()
    loop.call_later(0.06, flight.prove)  # after the first deadline, before the second
    assert (await asking).body == DATA
    assert flight.streams == []


async def test_body_that_fails_is_cut_short_and_then_left_to_the_upstream(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    with capture_logs() as logs:
        async with connected(mirror.port) as (reader, writer):
            writer.write(request(target(flight)))
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(MIB) == DATA[:MIB]
            flight.break_(DigestMismatch(str(flight.digest), "sha256:other", len(DATA)))
            rest = await reader.read()
        assert rest == b""
        assert await mirror.told() == ("blob", 200, MIB)
        assert "error" not in {entry["log_level"] for entry in logs}
        # Every client's next requests, by Range or not, until the time is over.
        mirror.source.flights[flight.digest] = Flight(flight.path, DATA).prove()
        assert (await mirror.blob(flight.digest, f"Range: bytes={MIB}-")).status == 404
        assert (await mirror.blob(flight.digest)).status == 404
        assert (await mirror.blob(flight.digest, method="HEAD")).status == 404
        mirror.clock.now += 29.9
        assert (await mirror.blob(flight.digest)).status == 404
        mirror.clock.now += 0.2
        assert (await mirror.blob(flight.digest)).body == DATA
    assert (flight.released, flight.closed_streams) == (1, 1)


async def test_a_cut_body_does_not_harm_other_blobs(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    other = mirror.flight(b"other").prove()
    with capture_logs():
        async with connected(mirror.port) as (reader, writer):
            writer.write(request(target(flight)))
            await reader.readuntil(b"\r\n\r\n")
            flight.break_(UpstreamUnreachable("gone"))
            await reader.read()
    assert (await mirror.blob(other.digest)).body == b"other"


async def test_body_without_progress_is_cut(start: Start) -> None:
    mirror = await start(**LATE, stall=0.05)
    flight = arriving(mirror)
    with capture_logs():
        answer = await mirror.blob(flight.digest)
        assert (answer.status, answer.complete, answer.body) == (200, False, DATA[:MIB])
        assert (await mirror.blob(flight.digest, f"Range: bytes={MIB}-")).status == 404


async def test_body_of_a_flight_that_says_it_is_alive_is_not_cut(start: Start) -> None:
    mirror = await start(**LATE, stall=0.1)
    flight = arriving(mirror)
    loop = asyncio.get_running_loop()
    began = loop.time()

    def beat() -> None:
        if loop.time() - began < 0.3:  # three times what would be a stall
            flight.pulse()
            loop.call_later(0.01, beat)
        else:
            flight.prove()

    beat()
    answer = await mirror.blob(flight.digest)
    assert (answer.status, answer.complete, answer.body) == (200, True, DATA)


async def test_range_without_a_byte_is_404_though_the_flight_is_alive(start: Start) -> None:
    mirror = await start(**LATE, range_deadline=0.15)
    flight = arriving(mirror)
    loop = asyncio.get_running_loop()
    asking = asyncio.ensure_future(mirror.blob(flight.digest, f"Range: bytes={2 * MIB}-"))

    def beat() -> None:
        if not asking.done():
            flight.pulse()
            loop.call_later(0.01, beat)

    beat()
    assert (await asking).status == 404


@pytest.mark.parametrize("broken", ["too short", "too long", "bug"])
async def test_stream_that_breaks_its_contract_never_ends_well(
    start: Start, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)

    async def stream(self: object, first: int, end: int):
        yield DATA[:MIB]
        if broken == "too long":
            yield DATA
        if broken == "bug":
            raise KeyError("bug")

    monkeypatch.setattr("mirror_fakes.FakeHandle.stream", stream)
    with capture_logs():
        answer = await mirror.blob(flight.digest)
        assert (answer.status, answer.complete, answer.body) == (200, False, DATA[:MIB])
        assert (await mirror.blob(flight.digest)).status == 404


async def test_range_of_a_slow_blob_gets_the_bytes_that_are_there(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror, 2 * MIB)
    answer = await mirror.blob(flight.digest, f"Range: bytes={MIB}-{2 * MIB - 1}")
    assert (answer.status, answer.body) == (206, DATA[MIB : 2 * MIB])
    assert flight.streams == [(MIB, 2 * MIB)]
    answer = await mirror.blob(flight.digest, f"Range: bytes={len(DATA)}-")
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{len(DATA)}")


async def test_range_far_from_what_arrives_is_left_to_the_upstream_without_a_cut(start: Start) -> None:
    mirror = await start(**LATE, range_deadline=0.1)
    flight = arriving(mirror)
    assert (await mirror.blob(flight.digest, f"Range: bytes={2 * MIB}-")).status == 404
    assert flight.closed_streams == 1
    answer = await mirror.blob(flight.digest, "Range: bytes=0-9")  # the blob itself is fine
    assert (answer.status, answer.body) == (206, DATA[:10])


async def test_range_that_fails_before_its_first_byte_is_404(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    asking = asyncio.ensure_future(mirror.blob(flight.digest, f"Range: bytes={2 * MIB}-"))
    await flight.streaming.wait()
    flight.break_(UpstreamUnreachable("gone"))
    assert (await asking).status == 404


async def test_blob_of_unknown_size_is_waited_for(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror, size_known=False)
    asking = asyncio.ensure_future(mirror.blob(flight.digest))
    await flight.joined.wait()
    asyncio.get_running_loop().call_later(0.15, flight.prove)
    answer = await asking
    assert (answer.status, answer.body) == (200, DATA)
    assert flight.streams == []


async def test_blob_that_claims_to_be_empty_is_not_served_unproved(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    flight.size = 0
    asking = asyncio.ensure_future(mirror.blob(flight.digest))
    await flight.joined.wait()
    asyncio.get_running_loop().call_later(0.15, flight.break_, UpstreamUnreachable("gone"))
    assert (await asking).status == 404
    assert flight.streams == []


async def test_serve_proved_never_sends_a_byte_before_the_whole_digest_is_proved(start: Start) -> None:
    mirror = await start(**LATE, serve="proved")
    good, bad = arriving(mirror, 3 * MIB), mirror.flight(b"bad")
    bad.arrive(3)
    async with connected(mirror.port) as (reader, writer):
        writer.write(request(target(good)))
        loop = asyncio.get_running_loop()
        later = loop.create_future()
        loop.call_later(0.2, later.set_result, None)  # three times the header deadline
        first = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({first, later}, return_when=asyncio.FIRST_COMPLETED)
        assert not first.done()
        good.prove()
        assert await first == b"H"
        assert (await read_answer(reader)).body == DATA
    asking = asyncio.ensure_future(mirror.blob(bad.digest))
    await bad.joined.wait()
    loop.call_later(0.1, bad.break_, DigestMismatch(str(bad.digest), "sha256:other", 3))
    assert (await asking).status == 404
    assert (good.streams, bad.streams) == ([], [])


async def test_client_that_resets_a_followed_blob_cancels_nothing(start: Start) -> None:
    mirror = await start(**LATE)
    flight = arriving(mirror)
    with capture_logs() as logs:
        async with connected(mirror.port) as (reader, writer):
            writer.write(request(target(flight)))
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(MIB)
        kind, status, sent = await mirror.told()
    assert (kind, status, sent) == ("blob", 200, MIB)
    assert logs == []
    assert (flight.released, flight.closed_streams) == (1, 1)
    flight.prove()
    assert (await mirror.blob(flight.digest)).body == DATA


async def test_client_that_stops_reading_a_followed_blob_is_dropped_and_counted(start: Start) -> None:
    mirror = await start(**LATE, client_stall=0.2)
    flight = mirror.flight(DATA * 8)
    flight.arrive(len(DATA) * 7)
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port, limit=1024)
    writer.transport.pause_reading()
    writer.write(request(target(flight)))
    kind, status, sent = await mirror.told()
    writer.transport.abort()
    assert (kind, status, mirror.server.counts.stalled_clients) == ("blob", 200, 1)
    assert sent < len(DATA) * 7
    assert (flight.released, flight.closed_streams) == (1, 1)
    assert reader is not None
