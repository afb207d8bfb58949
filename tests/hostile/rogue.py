"""A node gone bad: a member by its certificate, known to the tracker, that says and sends what a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import Fleet, until

from p2pdist.enrol import Enrolment
from p2pdist.mesh.wire import UPGRADE, Alive, Open, bitmap, encode
from p2pdist.pki import JoinToken, TlsCredentials
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_count
from p2pdist.swarm.attest import Attestor, pack, to_header
from p2pdist.tracker_client import TrackerClient


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
        fleet: Fleet,
        directory: Path,
        blobs: dict[str, bytes],
        answer: Answer,
        host: str,
        *,
        says: tuple[str, int] | None = None,
    ) -> None:
        self._says = says  # where it says that it is reached
        self.key = Ed25519PrivateKey.generate()
        self.attestor = Attestor(self.key)
        self.node = self.attestor.node
        self.blobs = blobs
        self.asked = 0
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
        sizes: dict[str, int] = {}
        for message in self.heard:
            if isinstance(message, wire.Joined):
                sizes |= {swarm.digest: swarm.chunk_size for swarm in message.swarms}
        for number, (digest, data) in enumerate(self.blobs.items()):
            size = sizes.get(digest) or self._fleet_chunk_size(digest)
            count = chunk_count(len(data), size)
            writer.write(encode(Open(number, digest, len(data), size, bitmap((1 << count) - 1, count))))
        await writer.drain()
        while await reader.read(65536):
            writer.write(encode(Alive()))
            await writer.drain()

    def _fleet_chunk_size(self, digest: str) -> int:
        """What the victims use for this blob: an attacker would hear it on the link."""
        for node in self._fleet.nodes:
            exchange = node.agent._engine._exchanges.get(digest)
            if exchange is not None:
                return exchange.chunk_size
        return 64 * 1024


async def has_nothing(rogue: Rogue, request: Request) -> None:
    """It claimed every chunk."""
    request.writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
