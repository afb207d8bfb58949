"""Real agents and a real tracker in the test's process, on loopback addresses, with a fake registry upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from support.registry import FakeRegistry, Image

from p2pdist.agent import Agent, AgentStatus
from p2pdist.config import (
    AgentConfig,
    ClusterConfig,
    MirrorConfig,
    NodeConfig,
    PeerConfig,
    RegistryConfig,
    TrackerConfig,
)
from p2pdist.oci import Digest
from tracker.app import RunningTracker
from tracker.config import TrackerSettings


class Node:
    """One agent. `stop` ends it as SIGTERM does."""

    def __init__(self, agent: Agent, config: AgentConfig, ready: AgentStatus, task: asyncio.Task[None]) -> None:
        self.agent = agent
        self.config = config
        self.url = f"http://{ready.mirror_host}:{ready.mirror_port}"
        self.node = ready.node
        self.task = task
        self.stopping = asyncio.Event()

    @property
    def transfer(self) -> dict[str, Any]:
        return dict(self.agent.status()["transfer"])


class Fleet:
    """An asynchronous context manager: a registry, a tracker, and agents started with `start`."""

    def __init__(
        self,
        directory: Path,
        registry: FakeRegistry,
        *,
        tracked: bool = True,
        insecure: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings or {}  # of the tracker, besides the usual ones
        self.insecure = insecure
        self.token: str | None = None
        self.directory = directory
        self.registry = registry
        self.nodes: list[Node] = []
        self.client: aiohttp.ClientSession
        self.tracker: RunningTracker | None = None
        self._tracked = tracked
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        self.client = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        )
        if self._tracked:
            await self.start_tracker()
            if not self.insecure:
                self.token = await self.tracker.new_token(3600)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await self.stop(node)
        await self.stop_tracker()
        await self._stack.aclose()

    async def start_tracker(self, port: int = 0) -> RunningTracker:
        """The tracker, or the one that comes after it with what it kept."""
        given = {"data_directory": str(self.directory / "tracker"), "insecure": self.insecure, **self.settings}
        self.tracker = RunningTracker(TrackerSettings(port=port, **given))
        await self.tracker.__aenter__()
        return self.tracker

    async def stop_tracker(self) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            await tracker.__aexit__(None, None, None)

    async def start(self, name: str | None = None, **sections: Any) -> Node:
        """A new agent; `sections` replace those of its configuration."""
        number = len(self.nodes) + 2
        name = name or f"node-{number}"
        host = f"127.0.0.{number}"
        urls = (self.tracker.url,) if self.tracker is not None else ()
        config = AgentConfig(
            node=NodeConfig(name=name, data_dir=self.directory / name, shutdown_seconds=1.0),
            mirror=MirrorConfig(host=host, port=0),
            peer=PeerConfig(host=host, port=0, advertise_host=host),
            tracker=TrackerConfig(urls=urls),
            cluster=ClusterConfig(insecure=self.insecure, token=self.token),
            registries=(RegistryConfig(name=self.registry.name, url=self.registry.url, stall_timeout_seconds=2.0),),
        )
        return await self.run(replace(config, **sections))

    async def run(self, config: AgentConfig) -> Node:
        agent, stop = Agent(config), asyncio.Event()
        ready: asyncio.Future[AgentStatus] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(agent.run(ready.set_result, stop))
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        node = Node(agent, config, await ready, task)
        node.stopping = stop
        self.nodes.append(node)
        if self.tracker is not None:
            await until(lambda: bool(agent.status()["tracker"]["connected"]))
        return node

    async def stop(self, node: Node) -> None:
        node.stopping.set()
        await node.task

    def path(self, kind: str, target: object, repository: str = "app/a") -> str:
        return f"/v2/{repository}/{kind}/{target}?ns={self.registry.name.replace(':', '%3A')}"

    async def get(self, node: Node, kind: str, target: object, **options: Any) -> tuple[int, bytes]:
        """Status and body of one request to the mirror; a body that is cut is as long as what came."""
        async with self.client.get(node.url + self.path(kind, target), **options) as answer:
            body = bytearray()
            try:
                async for piece in answer.content.iter_chunked(1 << 16):
                    body += piece
            except aiohttp.ClientPayloadError:
                pass
            return answer.status, bytes(body)

    async def pull(self, node: Node, image: Image, tag: str = "1") -> None:
        """All of an image as a daemon pulls it: tag, config, three layers at a time; everything is compared."""
        status, raw = await self.get(node, "manifests", tag)
        assert (status, raw) == (200, image.raw), (status, raw[:200])
        gate = asyncio.Semaphore(3)

        async def one(digest: Digest, data: bytes) -> None:
            async with gate:
                status, body = await self.get(node, "blobs", digest)
                assert status == 200, (status, body[:200])
                assert body == data

        await asyncio.gather(*(one(digest, data) for digest, data in image.blobs.items()))


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until `condition()` holds; real time, woken often."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
