"""Blobs that are proved, and blobs that can't be served: design page "clients", 5.5 to 5.7, and bad input."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import pytest
from conftest import Running, request
from mirror_fakes import connected, raw_request, read_answer, reset_on_close
from structlog.testing import capture_logs
from test_mirror_manifests import TROUBLES

from p2pdist.errors import PolicyError
from p2pdist.mirror.sending import PIECE, Body, ClientGone, Exchange
from p2pdist.oci import Digest

DATA = bytes(range(256)) * 4096 + b"end"  # 1 MiB and a little


async def test_proved_blob_is_served_whole(mirror: Running) -> None:
    flight = mirror.flight(DATA).prove()
    answer = await mirror.blob(flight.digest, "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
    assert (answer.status, answer.complete, answer.body) == (200, True, DATA)
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["docker-content-digest"] == str(flight.digest)
    assert answer.headers["accept-ranges"] == "bytes"
    assert "content-encoding" not in answer.headers
    assert await mirror.told() == ("blob", 200, len(DATA))
    assert (flight.released, flight.open_files) == (1, 0)


async def test_empty_blob_is_served(mirror: Running) -> None:
    flight = mirror.flight(b"").prove()
    answer = await mirror.blob(flight.digest)
    assert (answer.status, answer.headers["content-length"]) == (200, "0")


@pytest.mark.parametrize(
    ("header", "first", "end"),
    [
        ("bytes=0-", 0, len(DATA)),
        ("bytes=8388-", 8388, len(DATA)),
        ("bytes=5-9", 5, 10),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes={PIECE - 1}-{PIECE}", PIECE - 1, PIECE + 1),
        ("bytes=0-99999999", 0, len(DATA)),
    ],
)
async def test_single_range_is_served_as_a_part(mirror: Running, header: str, first: int, end: int) -> None:
    flight = mirror.flight(DATA).prove()
    answer = await mirror.blob(flight.digest, f"Range: {header}")
    assert (answer.status, answer.body) == (206, DATA[first:end])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(DATA)}"
    assert answer.headers["content-length"] == str(end - first)


async def test_range_behind_the_end_is_not_satisfiable(mirror: Running) -> None:
    flight = mirror.flight(DATA).prove()
    answer = await mirror.blob(flight.digest, f"Range: bytes={len(DATA)}-")
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize("lines", [["Range: bytes=0-1,5-6"], ["Range: bytes=0-1", "Range: bytes=5-6"], ["Range: x=1"]])
async def test_several_or_odd_ranges_get_the_whole_blob(mirror: Running, lines: list[str]) -> None:
    flight = mirror.flight(DATA).prove()
    answer = await mirror.blob(flight.digest, *lines)
    assert (answer.status, answer.body) == (200, DATA)


async def test_range_of_another_version_gets_the_whole_blob(mirror: Running) -> None:
    flight = mirror.flight(DATA).prove()
    assert (await mirror.blob(flight.digest, "Range: bytes=5-", 'If-Range: "other"')).status == 200
    assert (await mirror.blob(flight.digest, "Range: bytes=5-", f'If-Range: "{flight.digest}"')).status == 206


async def test_head_answers_the_size_without_a_download(mirror: Running) -> None:
    flight = mirror.flight(DATA)
    answer = await mirror.blob(flight.digest, "Range: bytes=5-", method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(DATA)))
    assert answer.headers["docker-content-digest"] == str(flight.digest)
    assert answer.headers["accept-ranges"] == "bytes"
    assert [asked[0] for asked in mirror.source.asked] == ["blob_info"]
    assert flight.handles == 0


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda error: type(error).__name__)
async def test_whatever_goes_wrong_with_a_blob_is_404(mirror: Running, trouble: Exception) -> None:
    digest = Digest.of(b"never")
    mirror.source.flights[digest] = trouble  # refused at once
    failing = mirror.flight(DATA)
    failing.break_(trouble)  # fails on its way
    with capture_logs():
        for wanted in (digest, failing.digest):
            answer = await mirror.blob(wanted)
            assert answer.status == 404
            assert json.loads(answer.body)["errors"][0]["code"] == "BLOB_UNKNOWN"
            assert not {"www-authenticate", "retry-after"} & answer.headers.keys()
        assert (await mirror.blob(digest, method="HEAD")).status == 404
    assert (failing.released, failing.open_files) == (1, 0)


async def test_policy_refuses_a_blob_with_its_reason(mirror: Running) -> None:
    digest = Digest.of(b"refused")
    mirror.source.flights[digest] = PolicyError("evil.example is not allowed")
    answer = await mirror.blob(digest)
    assert (answer.status, json.loads(answer.body)["errors"][0]) == (
        403, {"code": "DENIED", "message": "evil.example is not allowed", "detail": None}
    )  # fmt: skip


async def test_blob_of_which_nothing_arrives_is_404_before_any_client_gives_up(
    start: Callable[..., Awaitable[Running]],
) -> None:
    mirror = await start(decide_deadline=0.05)
    silent = mirror.flight(DATA)
    hanging = Digest.of(b"hanging")
    mirror.source.flights[hanging] = asyncio.Event()
    assert (await mirror.blob(silent.digest)).status == 404
    assert (await mirror.blob(hanging)).status == 404
    assert silent.released == 1


async def test_a_hundred_requests_at_once_share_one_blob(mirror: Running) -> None:
    flight = mirror.flight(DATA)
    asking = [asyncio.ensure_future(mirror.blob(flight.digest)) for _ in range(100)]
    while flight.handles < 100:
        flight.joined.clear()
        await flight.joined.wait()
    flight.prove()
    answers = await asyncio.gather(*asking)
    assert all(answer.status == 200 and answer.body == DATA for answer in answers)
    for _ in range(100):
        await mirror.told()
    assert (flight.released, flight.open_files) == (100, 0)


async def test_open_ended_ranges_that_are_reset_cost_nothing_and_are_no_error(mirror: Running) -> None:
    # containerd from 2.1 with concurrent_layer_fetch_buffer: every range open-ended, closed after 8 MiB.
    data = os.urandom(1 << 20) * 40
    flight = mirror.flight(data).prove()

    async def take(start: int) -> None:
        async with connected(mirror.port) as (reader, writer):
            reset_on_close(writer)
            writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}", f"Range: bytes={start}-"))
            await reader.readuntil(b"\r\n\r\n")
            wanted = min(8 << 20, len(data) - start)
            assert await reader.readexactly(wanted) == data[start : start + wanted]

    with capture_logs() as logs:
        await asyncio.gather(*(take(number * (2 << 20)) for number in range(20)))
        told = [await mirror.told() for _ in range(20)]
    assert {entry[:2] for entry in told} == {("blob", 206)}
    assert logs == []
    assert (flight.released, flight.open_files) == (20, 0)
    assert (await mirror.blob(flight.digest)).body == data  # and the blob is not taken for a broken one


async def test_client_that_leaves_while_it_waits_gives_its_share_back(mirror: Running) -> None:
    flight = mirror.flight(DATA)
    async with connected(mirror.port) as (_, writer):
        writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
        await flight.joined.wait()
    assert await mirror.told() == ("blob", 499, 0)
    assert flight.released == 1
    flight.prove()  # the flight itself was not cancelled
    assert (await mirror.blob(flight.digest)).body == DATA


async def test_client_that_stops_reading_holds_no_memory_and_is_dropped(
    start: Callable[..., Awaitable[Running]],
) -> None:
    mirror = await start(client_stall=0.1)
    data = os.urandom(1 << 20) * 64
    flight = mirror.flight(data).prove()
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port, limit=1024)
    writer.transport.pause_reading()
    with capture_logs() as logs:
        writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
        kind, status, sent = await mirror.told()
    assert (kind, status) == ("blob", 200)
    assert mirror.server.counts.stalled_clients == 1
    assert sent < 16 << 20  # what the kernel buffers; nothing of it is memory of this process
    assert (flight.released, flight.open_files) == (1, 0)
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error")] == []
    writer.transport.abort()
    assert (await mirror.blob(flight.digest, "Range: bytes=0-9")).body == data[:10]
    assert reader is not None


async def test_client_that_reads_slowly_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    client = SlowClient(takes=5)
    exchange = Exchange(client)
    body = Body(exchange, client, client_stall=0.002)
    monkeypatch.setattr(body, "_unsent", client.look)
    await body.begin()
    await body.write(b"x" * PIECE)
    assert (exchange.sent, client.aborted) == (PIECE, False)
    client.takes = 3
    with pytest.raises(ClientGone):
        await body.write(b"x" * PIECE)
    assert (exchange.sent, client.aborted) == (PIECE, True)


class SlowClient:
    """Request, response, writer and transport of a client that takes a fifth of a piece between two looks at it."""

    def __init__(self, takes: int) -> None:
        self.transport = self.writer = self
        self.takes = takes
        self.left = 0
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_extra_info(self, name: str) -> None:
        assert name == "ssl_object"

    async def prepare(self, request: object) -> None: ...

    async def write(self, data: memoryview) -> None:
        self.left = 5
        await self.drain()

    async def drain(self) -> None:
        if self.left:
            await asyncio.Event().wait()

    def look(self) -> int:
        if self.takes > 0:
            self.takes -= 1
            self.left -= 1
        return self.left

    def force_close(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


async def test_file_that_is_shorter_than_its_blob_ends_in_a_cut_and_then_404(mirror: Running) -> None:
    flight = mirror.flight(DATA).prove()
    os.truncate(flight.path, PIECE + 5)
    with capture_logs() as logs:
        answer = await mirror.blob(flight.digest)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body == DATA[: PIECE + 5]
    assert [entry["event"] for entry in logs] == ["body cut short"]
    assert (await mirror.blob(flight.digest, "Range: bytes=5-")).status == 404
    assert flight.open_files == 0


async def test_blob_that_is_not_in_the_page_cache_is_read_beside_the_loop(
    mirror: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    flight = mirror.flight(DATA).prove()
    read: list[tuple[object, ...]] = []
    real = asyncio.to_thread

    async def to_thread(function: Callable[..., object], *args: object) -> object:
        read.append(args)
        return await real(function, *args)

    monkeypatch.setattr("p2pdist.mirror.sending.asyncio.to_thread", to_thread)
    fd = os.open(flight.path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            cold = os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT) == 0
        except BlockingIOError:
            cold = True
        except OSError:
            cold = False  # a file system that can't tell
    finally:
        os.close(fd)
    assert (await mirror.blob(flight.digest)).body == DATA
    assert bool(read) is cold
    before = len(read)
    assert (await mirror.blob(flight.digest)).body == DATA
    assert len(read) == before  # now it is cached


async def test_a_reset_leaves_no_descriptor_behind(mirror: Running) -> None:
    flight = mirror.flight(bytes(64 << 20)).prove()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        async with connected(mirror.port) as (reader, writer):
            reset_on_close(writer)
            writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
            await reader.readexactly(1 << 20)
        assert (await mirror.told())[:2] == ("blob", 200)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_requests_that_follow_each_other_without_waiting_are_answered_in_order(mirror: Running) -> None:
    flight = mirror.flight(DATA).prove()
    async with connected(mirror.port) as (reader, writer):
        target = f"/v2/library/alpine/blobs/{flight.digest}"
        writer.write(request(target, "Range: bytes=0-4") + request("/v2/") + request(target, "Range: bytes=5-9"))
        assert [(await read_answer(reader)).body for _ in range(3)] == [DATA[:5], b"{}", DATA[5:10]]


@pytest.mark.parametrize(
    "smuggled",
    [
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\nGET /v2/ ",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /v2/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/9.9.9\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v2/" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
    ],
)  # fmt: skip
async def test_what_is_not_http_is_refused_once_and_the_connection_closed(mirror: Running, smuggled: bytes) -> None:
    with capture_logs() as logs:
        async with connected(mirror.port) as (reader, writer):
            writer.write(smuggled)
            try:
                answer = await reader.read()
            except ConnectionResetError:
                answer = b""
    assert answer.count(b"\r\nServer: ") <= 1
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ") or answer.startswith(b"HTTP/1.0 400 "), answer
    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert mirror.source.asked == []
    assert (await raw_request(mirror.port, request("/v2/"))).status == 200
