"""Who may ask a mirror at all: by its names, with its password, with a certificate; and how many, how slowly."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import HUB_ALPINE, Clock, Running, request
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from mirror_fakes import FakeSource, Flight, connected, raw_request, read_answer

from p2pdist.config import AgentConfig, MirrorConfig
from p2pdist.errors import ConfigError
from p2pdist.mirror import Access, MirrorServer, MirrorSettings, mirror_tls, read_passwords
from p2pdist.mirror.sending import Body
from p2pdist.pki import Authority, Role

Start = Callable[..., Any]
TAG = "/v2/library/alpine/manifests/latest"


def called(host: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {TAG} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode("latin-1")


def basic(login: str) -> str:
    return "Authorization: Basic " + base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize(
    ("host", "loopback", "remote"),
    [
        ("127.0.0.1:5050", True, True),
        ("127.0.0.9", True, True),
        ("localhost:5050", True, True),
        ("LOCALHOST.", True, True),
        ("[::1]:5050", True, True),
        ("mirror.test:5050", True, True),
        ("10.0.0.5:5050", False, True),
        ("[fd00::5]:5050", False, True),
        ("evil.example:5050", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("mirror.test.evil.example", False, False),
        ("127.1", False, False),
        ("", False, False),
        ("127.0.0.1:5050:5050", False, False),
        ("evil.example@127.0.0.1", False, False),
    ],
)
def test_only_names_that_are_ours_are_answered(host: str, loopback: bool, remote: bool) -> None:
    names = frozenset({"mirror.test"})
    assert (Access(names).objection(host, None) is None) is loopback
    assert (Access(names, remote=True).objection(host, None) is None) is remote


async def test_a_web_page_that_had_its_name_resolve_to_loopback_reads_nothing(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", b"{}")
    assert (await mirror.ask(TAG)).status == 200
    for wrong in (called("evil.example:5050"), called("127.0.0.1", "Host: evil.example"), called("")):
        answer = await raw_request(mirror.port, wrong)
        assert answer.status in (400, 421) and answer.body != b"{}"
    without = f"GET {TAG} HTTP/1.1\r\n\r\n".encode()
    assert (await raw_request(mirror.port, without)).status in (400, 421)
    assert len(mirror.source.asked) == 1
    assert mirror.server.counts.turned_away >= 2


async def test_with_a_password_nobody_gets_in_without_it_and_it_goes_no_further(start: Start) -> None:
    passwords = read_passwords("# daemons\n\nnode:s3cret:with:colons\nother:x\n")
    mirror = await start(stop=0.5, access=Access(passwords=passwords))
    mirror.source.add_manifest(HUB_ALPINE, "latest", b"{}")
    for target in ("/v2/", TAG):
        for sent in (
            [],
            [basic("node:wrong")],
            [basic("node:")],
            ["Authorization: Basic !"],
            ["Authorization: Bearer x"],
        ):
            answer = await mirror.ask(target, *sent)
            assert answer.status == 403
            assert "www-authenticate" not in answer.headers  # a daemon would send its registry's password to us
            assert b"s3cret" not in answer.body
    assert mirror.source.asked == []
    assert (await mirror.ask(TAG, basic("node:s3cret:with:colons"))).status == 200
    assert mirror.source.asked[0][-1] is None


def test_a_password_file_that_is_none_is_refused_by_its_lines_number_only() -> None:
    for text in ("", "# nothing\n", "good:one\nhunter2\n", ":hunter2\n", "hunter2:\n"):
        with pytest.raises(ConfigError) as refused:
            read_passwords(text)
        assert "hunter2" not in str(refused.value)


class Files:
    """An authority, and certificates of it as PEM files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create(time.time())
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.authority.pem)

    def issue(self, name: str) -> tuple[Path, Path]:
        key = Ed25519PrivateKey.generate()
        pem = self.authority.issue(key.public_key(), Role.NODE, {}, time.time(), 3600)
        certificate, private = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        certificate.write_bytes(pem)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, private


async def test_over_tls_a_client_certificate_can_be_asked_for(tmp_path: Path) -> None:
    files = Files(tmp_path)
    source = FakeSource()
    source.add_manifest(HUB_ALPINE, "latest", b"{}" * 1000)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def get(server: MirrorServer, context: ssl.SSLContext) -> int:
            url = f"https://127.0.0.1:{server.port}{TAG}"
            async with http.get(url, ssl=context, server_hostname=Role.NODE.host) as answer:
                assert await answer.read() == b"{}" * 1000
                return answer.status

        stranger = ssl.create_default_context(cafile=str(files.ca))
        member = ssl.create_default_context(cafile=str(files.ca))
        member.load_cert_chain(*files.issue("client"))
        settings = MirrorSettings(stop=0.5)
        pair = files.issue("server")
        open_ = await stack.enter_async_context(MirrorServer(source, settings, port=0, tls=mirror_tls(*pair, None)))
        closed = await stack.enter_async_context(
            MirrorServer(source, settings, port=0, tls=mirror_tls(*pair, files.ca))
        )
        assert await get(open_, stranger) == 200
        assert await get(closed, member) == 200
        with pytest.raises(aiohttp.ClientError):
            await get(closed, stranger)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await raw_request(open_.port, request(TAG))  # plain HTTP


async def test_over_tls_a_stored_blob_is_encrypted_whole_and_in_part_and_a_file_that_ends_early_is_cut(
    tmp_path: Path,
) -> None:
    files, source = Files(tmp_path), FakeSource()
    data = os.urandom(1 << 20) * 9 + b"the end"
    flight = Flight(tmp_path / "blob", data).prove()
    source.flights[flight.digest] = flight
    stranger = ssl.create_default_context(cafile=str(files.ca))
    tls = mirror_tls(*files.issue("server"), None)
    path = f"/v2/library/alpine/blobs/{flight.digest}"
    async with (
        MirrorServer(source, MirrorSettings(stop=0.5), port=0, tls=tls) as server,
        aiohttp.ClientSession() as http,
    ):

        async def get(**headers: str) -> bytes:
            options = {"ssl": stranger, "server_hostname": Role.NODE.host, "headers": headers}
            async with http.get(f"https://127.0.0.1:{server.port}{path}", **options) as answer:
                return await answer.read()

        assert await get() == data
        assert await get(Range="bytes=3000000-3999999") == data[3_000_000:4_000_000]
        assert await get(Range="bytes=-7") == b"the end"
        os.truncate(tmp_path / "blob", 1 << 20)
        with pytest.raises(aiohttp.ClientPayloadError):
            await get()


@asynccontextmanager
async def unread_over_tls(directory: Path, client_stall: float) -> AsyncIterator[Unread]:
    """A mirror with TLS, and a client of it that asked for a large blob and reads nothing."""
    files, source = Files(directory), FakeSource()
    flight = Flight(directory / "blob", os.urandom(1 << 20) * 48).prove()
    source.flights[flight.digest] = flight
    context = ssl.create_default_context(cafile=str(files.ca))
    served: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
    server = MirrorServer(
        source,
        MirrorSettings(stop=0.5, client_stall=client_stall),
        port=0,
        tls=mirror_tls(*files.issue("server"), None),
        on_served=lambda *what: served.put_nowait(what),
    )
    async with server, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=context, server_hostname=Role.NODE.host, limit=1024
        )
        try:
            writer.transport.pause_reading()
            writer.write(request(f"/v2/library/alpine/blobs/{flight.digest}"))
            yield Unread(server, flight, served, reader, writer)
        finally:
            writer.transport.abort()


@dataclass
class Unread:
    server: MirrorServer
    flight: Flight
    served: asyncio.Queue[tuple[str, int, int]]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def test_over_tls_a_client_that_stops_reading_is_ended_and_counted(tmp_path: Path) -> None:
    async with unread_over_tls(tmp_path, client_stall=0.2) as one:
        kind, status, sent = await one.served.get()
        assert (kind, status) == ("blob", 200)
        assert one.server.counts.stalled_clients == 1
        assert sent < 32 << 20  # what the kernels buffer
        assert (one.flight.released, one.flight.open_files) == (1, 0)


async def test_over_tls_a_client_that_stops_for_a_while_and_reads_on_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, look = asyncio.Event(), Body._unsent

    def unsent(body: Body) -> int:
        looked.set()
        return look(body)

    monkeypatch.setattr(Body, "_unsent", unsent)
    async with unread_over_tls(tmp_path, client_stall=1.0) as one:
        await looked.wait()  # it took nothing for so long, once
        one.writer.transport.resume_reading()
        await one.reader.readuntil(b"\r\n\r\n")
        assert await one.reader.readexactly(len(one.flight.data)) == one.flight.data
        assert await one.served.get() == ("blob", 200, len(one.flight.data))
        assert one.server.counts.stalled_clients == 0


async def test_a_client_that_reads_nothing_over_tls_does_not_keep_the_mirror_from_stopping(tmp_path: Path) -> None:
    async with unread_over_tls(tmp_path, client_stall=300.0) as one:
        while not one.flight.handles:
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await one.server.__aexit__(None, None, None)
        assert one.flight.open_files == 0


async def test_a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(tmp_path: Path) -> None:
    files, clock = Files(tmp_path), Clock()
    pair = files.issue("server")
    context = ssl.create_default_context(cafile=str(files.ca))
    tls = mirror_tls(*pair, None)

    async def shown(port: int) -> int:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=Role.NODE.host)
        serial = int(writer.get_extra_info("ssl_object").getpeercert()["serialNumber"], 16)
        writer.close()
        return serial

    async with MirrorServer(FakeSource(), MirrorSettings(stop=0.5), port=0, tls=tls, clock=clock) as server:
        first = await shown(server.port)
        for number, path in enumerate(pair, 1):  # while it is being written, the two don't fit
            other = files.issue(f"other-{number}")
            path.write_bytes(other[number - 1].read_bytes())
            os.utime(path, (number, number))
            clock.now += 61
            assert await shown(server.port) == first
        for path, new in zip(pair, files.issue("new"), strict=True):
            path.write_bytes(new.read_bytes())
        assert await shown(server.port) == first  # not looked at yet
        clock.now += 61
        await shown(server.port)
        assert await shown(server.port) != first


def test_certificates_that_cannot_be_used_are_a_configuration_error(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificate, key = files.issue("a")
    _, other = files.issue("b")
    (tmp_path / "none.pem").write_text("nothing")
    for pair, client_ca in (((certificate, other), None), ((tmp_path / "absent", key), None)):
        with pytest.raises(ConfigError, match=r"mirror\.tls_certificate"):
            mirror_tls(*pair, client_ca)
    with pytest.raises(ConfigError, match=r"mirror\.client_ca"):
        mirror_tls(certificate, key, tmp_path / "none.pem")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"host": "0.0.0.0"}, "allow_remote"),
        ({"host": "::"}, "allow_remote"),
        ({"host": "10.0.0.5"}, "allow_remote"),
        ({"host": "node-1.example"}, "allow_remote"),
        ({"tls_key": Path("k")}, "one without the other"),
        ({"client_ca": Path("c")}, "mirror.client_ca"),
        ({"host": "0.0.0.0", "allow_remote": True, "password_file": Path("p")}, "in clear"),
    ],
)
def test_a_mirror_that_would_be_open_to_others_by_mistake_does_not_start(options: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        AgentConfig(mirror=MirrorConfig(**options))


def test_a_mirror_for_others_has_to_be_meant() -> None:
    assert AgentConfig(mirror=MirrorConfig(host="0.0.0.0", allow_remote=True)).mirror_is_remote
    for host in ("127.0.0.1", "127.0.0.7", "::1", "localhost"):
        assert not AgentConfig(mirror=MirrorConfig(host=host, password_file=Path("p"))).mirror_is_remote


async def test_connections_beyond_the_limit_are_closed_and_counted_and_room_is_used_again(start: Start) -> None:
    mirror = await start(stop=0.5, max_connections=3)
    mirror.source.add_manifest(HUB_ALPINE, "latest", b"{}")
    held = [await asyncio.open_connection("127.0.0.1", mirror.port) for _ in range(3)]
    while mirror.server.connections < 3:
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        writer.write(request(TAG))
        await reader.readexactly(1)
    writer.close()
    assert mirror.server.counts.refused_connections == 1
    for _, one in held:
        one.close()
        await one.wait_closed()
    while mirror.server.connections:
        await asyncio.sleep(0)
    assert (await mirror.ask(TAG)).status == 200


async def test_a_client_that_never_ends_its_request_is_dropped(start: Start) -> None:
    mirror = await start(stop=0.5, head=0.2)
    mirror.source.add_manifest(HUB_ALPINE, "latest", b"{}")
    async with connected(mirror.port) as (slow, writer), connected(mirror.port) as (other, asking):
        writer.write(request(TAG)[:-2])
        asking.write(request(TAG))
        assert (await read_answer(other)).status == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await slow.readexactly(1)
        assert mirror.server.counts.slow_connections == 1
        asking.write(request(TAG))  # who asked once may be idle
        assert (await read_answer(other)).status == 200


async def test_a_head_that_is_too_large_ends_its_connection_only(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", b"{}")
    for large in (["X-A: " + "a" * 20_000], [f"X-{n}: {'a' * 4000}" for n in range(100)]):
        try:
            answer = await raw_request(mirror.port, request(TAG, *large))
        except (ConnectionError, asyncio.IncompleteReadError):
            continue
        assert answer.status in (400, 431)
    assert mirror.source.asked == []
    assert mirror.server.counts.large_requests == 1
    async with connected(mirror.port) as (reader, writer):
        for _ in range(30):  # the bound is on one request
            writer.write(request(TAG, "X-A: " + "a" * 4000))
            assert (await read_answer(reader)).status == 200
