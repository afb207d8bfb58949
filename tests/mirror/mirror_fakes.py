"""A Source whose every step the test decides, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from p2pdist.errors import UpstreamNotFound
from p2pdist.oci import OCI_MANIFEST, Digest, Repository
from p2pdist.store.blob import BlobFile


@dataclass
class FakeManifest:
    raw: bytes
    media_type: str
    digest: Digest


@dataclass
class FakeRaw:
    status: int = 200
    media_type: str = "application/json"
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class Flight:
    """One blob on its way. The test proves it, fails it, or lets chunks of it arrive."""

    def __init__(self, path: Path, data: bytes, *, size_known: bool = True) -> None:
        self.path = path
        self.data = data
        self.digest = Digest.of(data)
        self.size = len(data) if size_known else None
        self.delivering = False
        self.handles = 0
        self.released = 0
        self.open_files = 0
        self.streams: list[tuple[int, int]] = []
        self.closed_streams = 0
        self.joined = asyncio.Event()
        self.streaming = asyncio.Event()
        self._proved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived = 0
        self._news = asyncio.Event()
        self._broken: Exception | None = None
        self._pulse = False

    def prove(self) -> Flight:
        self.path.write_bytes(self.data)
        self._proved.set_result(None)
        self.arrive(len(self.data))
        return self

    def arrive(self, upto: int) -> None:
        """The bytes before `upto` are proved by attestations; what `stream` may hand out."""
        self.delivering = True
        self._arrived = upto
        self._news.set()
        self._news = asyncio.Event()

    def pulse(self) -> None:
        """The flight says that it is alive, without a byte."""
        self._pulse = True
        self._news.set()
        self._news = asyncio.Event()

    def break_(self, error: Exception) -> None:
        self._broken = error
        if not self._proved.done():
            self._proved.set_exception(error)
            self._proved.exception()  # nobody may be waiting
        self._news.set()
        self._news = asyncio.Event()

    def open(self) -> BlobFile:
        self.open_files += 1
        return BlobFile(self.digest, len(self.data), os.open(self.path, os.O_RDONLY), self._closed)

    def _closed(self) -> None:
        self.open_files -= 1

    def handle(self) -> FakeHandle:
        self.handles += 1
        self.joined.set()
        return FakeHandle(self)


class FakeHandle:
    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    @property
    def size(self) -> int | None:
        return self._flight.size

    @property
    def delivering(self) -> bool:
        return self._flight.delivering

    async def proved(self) -> BlobFile:
        await asyncio.shield(self._flight._proved)
        return self._flight.open()

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes]:
        flight = self._flight
        flight.streams.append((start, end))
        flight.streaming.set()
        try:
            while start < end:
                if flight._broken is not None:
                    raise flight._broken
                until = min(end, flight._arrived)
                if start < until:
                    piece = flight.data[start : min(until, start + 64 * 1024)]
                    start += len(piece)
                    yield piece
                elif flight._pulse:
                    flight._pulse = False
                    yield b""
                else:
                    await flight._news.wait()
        finally:
            flight.closed_streams += 1

    def release(self) -> None:
        self._flight.released += 1


class FakeSource:
    """Answers from dictionaries; an exception as a value is raised, an Event is waited for first."""

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], FakeManifest | Exception | asyncio.Event] = {}
        self.flights: dict[Digest, Flight | Exception | asyncio.Event] = {}
        self.raw: FakeRaw | Exception = UpstreamNotFound("none")
        self.asked: list[tuple[object, ...]] = []

    def add_manifest(self, repository: str, target: str, raw: bytes, media_type: str = OCI_MANIFEST) -> FakeManifest:
        manifest = FakeManifest(raw, media_type, Digest.of(raw))
        self.manifests[repository, target] = manifest
        self.manifests[repository, str(manifest.digest)] = manifest
        return manifest

    async def manifest(self, repository: Repository, target: str, *, authorization: str | None = None) -> FakeManifest:
        self.asked.append(("manifest", str(repository), target, authorization))
        found = self.manifests.get((str(repository), target), UpstreamNotFound(f"no {target} in {repository}"))
        if isinstance(found, asyncio.Event):
            await found.wait()
        if isinstance(found, FakeManifest):
            return found
        raise found

    async def blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> FakeHandle:
        self.asked.append(("blob", str(repository), str(digest), authorization))
        found = self.flights.get(digest, UpstreamNotFound(f"no {digest}"))
        if isinstance(found, asyncio.Event):
            await found.wait()
        if isinstance(found, Flight):
            return found.handle()
        raise found

    async def blob_info(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> int:
        self.asked.append(("blob_info", str(repository), str(digest), authorization))
        found = self.flights.get(digest, UpstreamNotFound(f"no {digest}"))
        if isinstance(found, Flight):
            return len(found.data)
        raise found

    async def referrers(
        self, repository: Repository, digest: Digest, artifact_type: str | None, *, authorization: str | None = None
    ) -> FakeRaw:
        self.asked.append(("referrers", str(repository), str(digest), artifact_type, authorization))
        return self._raw()

    async def tags_list(self, repository: Repository, query: str, *, authorization: str | None = None) -> FakeRaw:
        self.asked.append(("tags", str(repository), query, authorization))
        return self._raw()

    def _raw(self) -> FakeRaw:
        if isinstance(self.raw, Exception):
            raise self.raw
        return self.raw


@dataclass
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool  # as many bytes as Content-Length said


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the mirror, closed at the end; a test that waits on it for ever fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 << 20)
    try:
        async with asyncio.timeout(45.0):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def raw_request(port: int, data: bytes) -> RawAnswer:
    """Send bytes, read one answer until its length is reached or the connection ends."""
    async with connected(port) as (reader, writer):
        writer.write(data)
        return await read_answer(reader, head=data.startswith(b"HEAD "))


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Closing this connection sends a reset, as a client does that wants no more of an open-ended range."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> RawAnswer:
    block = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = block.strip().split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    length = 0 if head else int(headers.get("content-length", "0"))
    body = b""
    while len(body) < length:
        try:
            piece = await reader.read(length - len(body))
        except ConnectionError:
            break
        if not piece:
            break
        body += piece
    return RawAnswer(int(first.split(" ")[1]), headers, body, len(body) == length)
