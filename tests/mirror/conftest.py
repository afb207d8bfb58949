"""A mirror on a real socket, on asyncio's loop and on uvloop, which the agent runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from mirror_fakes import FakeSource, Flight, RawAnswer, raw_request

from p2pdist.mirror import MirrorServer, MirrorSettings
from p2pdist.oci import Digest

HUB_ALPINE = "docker.io/library/alpine"


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: object, item: object) -> Mapping[str, Callable[[], object]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Running:
    """A started mirror. `served` gets what on_served was told, one entry per finished request."""

    source: FakeSource
    directory: Path
    clock: Clock = field(default_factory=Clock)
    served: asyncio.Queue[tuple[str, int, int]] = field(default_factory=asyncio.Queue)
    server: MirrorServer = field(init=False)

    @property
    def port(self) -> int:
        return self.server.port

    async def told(self) -> tuple[str, int, int]:
        """What on_served is told next."""
        async with asyncio.timeout(15.0):
            return await self.served.get()

    def flight(self, data: bytes, *, size_known: bool = True) -> Flight:
        """A blob that has been asked for and not arrived."""
        flight = Flight(self.directory / Digest.of(data).hex, data, size_known=size_known)
        self.source.flights[flight.digest] = flight
        return flight

    async def ask(self, target: str, *headers: str, method: str = "GET") -> RawAnswer:
        return await raw_request(self.port, request(target, *headers, method=method))

    async def blob(self, digest: Digest, *headers: str, method: str = "GET") -> RawAnswer:
        return await self.ask(f"/v2/library/alpine/blobs/{digest}", *headers, method=method)


def request(target: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:5050", *headers, "", ""]).encode("latin-1")


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Starts a mirror with settings that the test gives."""
    async with AsyncExitStack() as stack:

        async def started(**settings: object) -> Running:
            running = Running(FakeSource(), tmp_path)
            server = MirrorServer(
                running.source,
                MirrorSettings(**settings),
                port=0,
                on_served=lambda *what: running.served.put_nowait(what),
                clock=running.clock,
            )
            running.server = await stack.enter_async_context(server)
            return running

        yield started


@pytest.fixture
async def mirror(start: Callable[..., object]) -> Running:
    """A mirror with the settings it has in production, apart from a short stop."""
    return await start(stop=0.5)
