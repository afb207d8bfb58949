"""A node gone bad: a member by its certificate, known to the tracker, that says and sends what a test wants."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import Fleet, until
from town import Town

from p2pdist.enrol import Enrolment
from p2pdist.mesh.wire import UPGRADE, Alive, FrameReader, Open, bitmap, encode
from p2pdist.pki import Authority, JoinToken, Role, TlsCredentials
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_count
from p2pdist.swarm.attest import Attestor, pack, to_header
from p2pdist.tracker_client import TrackerClient

LINK = f"GET /v1/link HTTP/1.1\r\nHost: peer\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
LINK += f"P2pdist-Node: {'ab' * 32}\r\nP2pdist-Port: 1\r\nP2pdist-Host: 127.0.0.1\r\n\r\n"


def holder(
    authority: Authority,
    trusted: Authority,
    role: Role = Role.NODE,
    age: float = 0.0,
    key: Ed25519PrivateKey | None = None,
) -> TlsCredentials:
    """Somebody with a certificate of `authority`, issued `age` seconds ago for an hour, who trusts `trusted`."""
    key = key or Ed25519PrivateKey.generate()
    tls = TlsCredentials()
    certificate = authority.issue(key.public_key(), role, {}, time.time() - age, 3600)
    tls.use(certificate, key, authority.pem)
    if trusted is not authority:
        tls.client.in_force.load_verify_locations(cadata=trusted.pem.decode())
    return tls


class Request:
    """One request for a range of a blob, to be answered on `writer`."""

    def __init__(self, digest: str, chunk_size: int, start: int, end: int, writer: asyncio.StreamWriter) -> None:
        self.digest, self.chunk_size, self.start, self.end = digest, chunk_size, start, end
        self.writer = writer

    @property
    def index(self) -> int:
        return self.start // self.chunk_size

    def head(self, size: int, attestation: bytes | None, length: int | None = None) -> bytes:
        extra = f"P2pdist-Attestation: {to_header(attestation)}\r\n" if attestation else ""
        return (
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {length or self.end - self.start}\r\n"
            f"Content-Range: bytes {self.start}-{self.end - 1}/{size}\r\nP2pdist-Load: 0\r\n{extra}\r\n"
        ).encode()


Answer = Callable[["Rogue", Request], Awaitable[None]]


class Rogue:
    """An asynchronous context manager. `blobs`: digest -> its true bytes; it claims to have every chunk of them."""

    def __init__(
        self,
        fleet: Fleet | Town,
        directory: Path,
        blobs: dict[str, bytes],
        answer: Answer,
        host: str,
        *,
        says: tuple[str, int] | None = None,
        holds: bool = True,
        hear: Callable[[Rogue, Any], None] | None = None,
    ) -> None:
        self._holds = holds  # it says that it has the blobs whole
        self._react = hear  # what else it does about what the tracker says
        self._says = says  # where it says that it is reached
        self.key = Ed25519PrivateKey.generate()
        self.attestor = Attestor(self.key)
        self.node = self.attestor.node
        self.blobs = blobs
        self.asked = 0
        self.leased: set[tuple[str, int]] = set()
        self.heard: list[Any] = []
        self.on_link: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
        self._fleet, self._directory, self._answer, self._host = fleet, directory, answer, host
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Rogue:
        tracker = self._fleet.tracker
        assert tracker is not None and self._fleet.token is not None
        self.tls = TlsCredentials()
        token = JoinToken.parse(self._fleet.token)
        enrolment = Enrolment([tracker.url], self.key, self._directory, token, self.tls)
        self._spawn(enrolment.run())
        await enrolment.member.wait()
        self.server = await asyncio.start_server(self._serve, self._host, 0, ssl=self.tls.server)
        self.port = self.server.sockets[0].getsockname()[1]
        self.client = TrackerClient(
            [tracker.url], self.key, "rogue", *(self._says or (self._host, self.port)), {},
            on_message=self._hear, on_state=lambda up: None, tls=self.tls.client,
        )  # fmt: skip
        self._spawn(self.client.run())
        await until(lambda: self.client.connected)
        if self._holds:
            self.client.send(wire.Holds(list(self.blobs)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self._tasks:
            task.cancel()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError, OSError, ssl.SSLError, asyncio.IncompleteReadError):
                await task

    def _spawn(self, work: Any) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        if isinstance(message, wire.Welcome):
            self.attestor.join(message.membership, message.cluster_key)
        if self._react is not None:
            self._react(self, message)

    @property
    def leases(self) -> int:
        """How many chunks it was to read from upstream."""
        return sum(m.count for m in self.heard if isinstance(m, wire.Lease) and not m.alone)

    def cut(self, digest: str) -> int:
        """The chunk size that the tracker said."""
        for message in self.heard:
            for swarm in message.swarms if isinstance(message, wire.Joined) else ():
                if swarm.digest == digest:
                    return swarm.chunk_size
        raise KeyError(digest)

    def attest(self, request: Request, sha256: bytes) -> bytes:
        """Its own signed statement, true or not."""
        statement = self.attestor.sign(request.digest, request.chunk_size, request.index, sha256)
        assert statement is not None
        return pack(statement)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            raw = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = raw.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            path = lines[0].split(" ")[1]
            if path == "/v1/link":
                await self._link(reader, writer)
                return
            self.asked += 1
            start, end = headers["range"].removeprefix("bytes=").split("-")
            digest = path.removeprefix("/v1/blobs/")
            request = Request(digest, int(headers["p2pdist-chunk"]), int(start), int(end) + 1, writer)
            await self._answer(self, request)
            await writer.drain()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
            f"P2pdist-Node: {self.node.hex()}\r\n\r\n".encode()
        )
        if self.on_link is not None:
            await self.on_link(writer)
        frames, opened = FrameReader(), 0
        while data := await reader.read(65536):
            for frame in frames.feed(data):
                if isinstance(frame, Open) and frame.digest in self.blobs:  # cut as the victim says
                    count = chunk_count(frame.size, frame.chunk_size)
                    everything = bitmap((1 << count) - 1, count)
                    writer.write(encode(Open(opened, frame.digest, frame.size, frame.chunk_size, everything)))
                    opened += 1
            writer.write(encode(Alive()))
            await writer.drain()


async def has_nothing(rogue: Rogue, request: Request) -> None:
    """It claimed every chunk."""
    request.writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
