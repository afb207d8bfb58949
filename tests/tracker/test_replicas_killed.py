"""Real tracker processes and a real Redis, killed in the middle of a rollout: every node finishes at one copy or so."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.fleet import Fleet, Node, until
from support.redis_server import RedisServer, free_port
from support.registry import Call, FakeRegistry, Image, noise

from p2pdist.config import TrackerConfig

MIB = 1 << 20
RATE = 4 * MIB  # bytes per second from upstream: a rollout takes seconds, on any machine
NODES = 5


class Slow:
    """The upstream's line: one answer after the other, at a rate. Whole small blobs are not counted."""

    def __init__(self) -> None:
        self._line = asyncio.Lock()

    async def __call__(self, request: web.Request) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is not None:
            async with self._line:
                await asyncio.sleep((int(asked[2]) - int(asked[1]) + 1) / RATE)


class TrackerProcess:
    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = os.environ | {
            "P2PDIST_TRACKER_PORT": str(self.port),
            "P2PDIST_TRACKER_INSECURE": "true",
            "P2PDIST_TRACKER_DATA_DIRECTORY": str(directory / "keys"),
            "P2PDIST_TRACKER_STATE_URL": redis.url,
        }
        self.log = directory / f"tracker-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "tracker"], env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


class Cluster:
    def __init__(self, fleet: Fleet, redis: RedisServer, trackers: list[TrackerProcess]) -> None:
        self.fleet = fleet
        self.redis = redis
        self.trackers = trackers
        self.nodes: list[Node] = []

    async def health(self, tracker: TrackerProcess) -> dict[str, Any]:
        try:
            async with self.fleet.client.get(tracker.url + "/healthz") as answer:
                return await answer.json()
        except aiohttp.ClientError:
            return {}

    async def leader(self) -> TrackerProcess:
        """The one that leads, once one does and the others follow it."""
        async with asyncio.timeout(60):
            while True:
                roles = {(await self.health(one)).get("role"): one for one in self.trackers}
                if set(roles) == {"leads", "follows"} or (len(self.trackers) == 1 and "leads" in roles):
                    return roles["leads"]
                await asyncio.sleep(0.05)

    async def kill_leader(self) -> TrackerProcess:
        leader = await self.leader()
        self.trackers.remove(leader)
        leader.kill()
        return leader


@asynccontextmanager
async def cluster(directory: Path, *redis_options: str) -> AsyncIterator[tuple[Cluster, FakeRegistry, Image]]:
    redis = RedisServer(directory / "redis", *redis_options)
    trackers = [TrackerProcess(directory, redis) for _ in range(2)]
    every = list(trackers)
    try:
        async with FakeRegistry() as registry, Fleet(directory, registry, tracked=False, insecure=True) as fleet:
            image = registry.add_image("app/a", "1", [noise(8 * MIB, 1), noise(4 * MIB, 2)])
            registry.fail(Call(Slow()), path="/blobs/.*", method="GET")
            found = Cluster(fleet, redis, trackers)
            await found.leader()
            urls = TrackerConfig(urls=tuple(tracker.url for tracker in trackers))
            found.nodes = [await fleet.start(tracker=urls) for _ in range(NODES)]
            await until(lambda: all(node.agent.status()["tracker"]["connected"] for node in found.nodes))
            yield found, registry, image
    finally:
        for tracker in every:
            tracker.kill()
        redis.kill()


async def rollout(found: Cluster, registry: FakeRegistry, image: Image, fault: Any) -> None:
    """`fault` happens when about a third has been read."""
    pulls = asyncio.gather(*(found.fleet.pull(node, image) for node in found.nodes))
    whole = sum(len(image.blobs[layer]) for layer in image.layers)
    await until(lambda: sum(registry.bytes_sent(layer) for layer in image.layers) > whole / 3, 60)
    assert not pulls.done()
    await fault()
    await asyncio.wait_for(pulls, 90)
    copies = sum(registry.bytes_sent(layer) for layer in image.layers) / whole
    print(f"upstream copies: {copies:.3f}")
    assert copies <= 1.2


async def test_the_leader_is_killed(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (found, registry, image):
        begun = 0.0

        async def fault() -> None:
            nonlocal begun
            await found.kill_leader()
            begun = time.monotonic()
            await found.leader()
            begun = time.monotonic() - begun

        await rollout(found, registry, image, fault)
        print(f"another one leads after {begun:.2f} s")
        assert begun < 2.0 * 5  # a machine that is five times slower


@pytest.mark.parametrize("options", [(), ("--appendonly", "yes")], ids=["without its data", "with its data"])
async def test_redis_is_killed_and_comes_back(tmp_path: Path, options: tuple[str, ...]) -> None:
    async with cluster(tmp_path, *options) as (found, registry, image):

        async def fault() -> None:
            found.redis.kill()
            await asyncio.sleep(0.5)
            found.redis.start()

        await rollout(found, registry, image, fault)
        await found.leader()


async def test_the_leader_and_redis_are_killed_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (found, registry, image):

        async def fault() -> None:
            found.redis.kill()
            await found.kill_leader()

        await rollout(found, registry, image, fault)
        (left,) = found.trackers
        assert (await found.health(left)) | {"nodes": 0, "version": ""} == {
            "status": "ok", "role": "leads", "state": "unreachable", "nodes": 0, "version": "",
        }  # fmt: skip
