"""A client of fake registries; retries without pauses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import stamina
from support.registry import FakeRegistry

from p2pdist.oci import Repository
from p2pdist.upstream import Credentials, Registry, Upstreams, UpstreamSettings

# A deadline per example fails by chance on a machine that is shared.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


class Client:
    """A registry's client, and the repository that the tests ask for."""

    def __init__(self, registry: Registry, repository: Repository, upstreams: Upstreams) -> None:
        self.registry, self.repository, self.upstreams = registry, repository, upstreams

    async def read(self, digest: Any, **options: Any) -> bytes:
        async with self.registry.read_blob(self.repository, digest, **options) as body:
            return b"".join([piece async for piece in body])


MakeClient = Callable[..., Awaitable[Client]]


@pytest.fixture
async def client_of() -> AsyncIterator[MakeClient]:
    """Makes a client of a fake registry: `await client_of(fake, credentials=..., clock=..., stall_timeout=...)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            fake: FakeRegistry,
            credentials: Credentials | None = None,
            *,
            clock: Any = None,
            wall: Any = None,
            **settings: Any,
        ) -> Client:
            clocks = {name: value for name, value in (("clock", clock), ("wall", wall)) if value is not None}
            listed = [UpstreamSettings(fake.name, fake.url, **settings)]
            upstreams = await stack.enter_async_context(Upstreams(listed, credentials or Credentials(), **clocks))
            return Client(upstreams.registry(fake.name), Repository(fake.name, "library/a"), upstreams)

        yield make


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def login(tmp_path: Path):
    def write(registry: FakeRegistry, entry: Mapping[str, Any] | None = None) -> Credentials:
        file = tmp_path / "config.json"
        entry = entry if entry is not None else {"username": "alice", "password": "hunter2"}
        file.write_text(json.dumps({"auths": {registry.name: entry}}))
        return Credentials(file)

    return write
