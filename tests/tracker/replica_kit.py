"""Replicas of one tracker in the test's process, a real redis-server, and agents that write down what they hear."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.redis_server import RedisServer, free_port

from p2pdist.protocol import messages as wire
from p2pdist.tracker_client import TrackerClient
from tracker.app import RunningTracker, TrackerSettings
from tracker.state import StateSettings


class Agent:
    """A session with one replica, taken up again when it is lost."""

    def __init__(self, url: str, name: str, key: Ed25519PrivateKey | None = None) -> None:
        self.heard: list[wire.FromTracker] = []
        self.key = key or Ed25519PrivateKey.generate()
        self.node = self.key.public_key().public_bytes_raw()
        self.client = TrackerClient(
            [url], self.key, name, "10.0.0.1", 7000, {}, on_message=self.heard.append, on_state=lambda up: None
        )
        self.task = asyncio.ensure_future(self.client.run())

    def say(self, *messages: wire.FromAgent) -> None:
        for message in messages:
            assert self.client.send(message)

    def got(self, kind: type) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]

    async def hears(self, kind: type, count: int = 1) -> Any:
        """The last of a kind, when there are so many."""
        await until(lambda: len(self.got(kind)) >= count)
        return self.got(kind)[-1]

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


class Replicas:
    """An asynchronous context manager; everything started in it is stopped."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.settings = {"insecure": True, "data_directory": str(directory / "shared")} | settings
        self.redis = RedisServer(directory / "redis")
        self.running: list[RunningTracker] = []
        self.agents: list[Agent] = []
        self.http: aiohttp.ClientSession
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Replicas:
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        for agent in self.agents:
            await agent.stop()
        for tracker in list(self.running):
            await self.stop(tracker)
        self.redis.kill()
        await self._stack.aclose()

    async def start(self, port: int = 0, **settings: Any) -> RunningTracker:
        state = StateSettings(url=self.redis.url)
        tracker = RunningTracker(TrackerSettings(port=port, **({"state": state} | self.settings | settings)))
        await tracker.__aenter__()
        self.running.append(tracker)
        return tracker

    async def stop(self, tracker: RunningTracker) -> None:
        self.running.remove(tracker)
        await tracker.__aexit__(None, None, None)

    async def agent(self, tracker: RunningTracker) -> Agent:
        agent = Agent(tracker.url, f"agent-{len(self.agents)}")
        self.agents.append(agent)
        await until(lambda: agent.client.connected and bool(agent.got(wire.Welcome)))
        return agent

    @property
    def leaders(self) -> list[RunningTracker]:
        return [tracker for tracker in self.running if tracker.leading is not None]

    async def settled(self) -> RunningTracker:
        """One leads, the others follow it."""

        def done() -> bool:
            return len(self.leaders) == 1 and len(self.leaders[0].replica.branches) == len(self.running) - 1

        await until(done)
        return self.leaders[0]

    async def health(self, tracker: RunningTracker) -> tuple[int, dict[str, Any]]:
        async with self.http.get(tracker.url + "/healthz") as answer:
            return answer.status, await answer.json()


async def until(condition: Any, seconds: float = 30.0) -> None:
    """Wait until `condition()` holds; real time, woken often."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


__all__ = ["Agent", "Replicas", "free_port", "until"]
