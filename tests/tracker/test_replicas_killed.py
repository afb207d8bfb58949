"""Real tracker processes and a real Redis, killed in the middle of a rollout: every node finishes at one copy or so."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from support.fleet import Fleet, Node, until
from support.redis_server import RedisServer, free_port
from support.registry import Call, FakeRegistry, Image, noise

from p2pdist.config import RegistryConfig, TrackerConfig

MIB = 1 << 20
RATE = 4 * MIB  # bytes per second from upstream: a rollout takes seconds, on any machine
NODES = 12


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
                roles = [(await self.health(one)).get("role") for one in self.trackers]
                if sorted(roles, key=str) == ["follows"] * (len(roles) - 1) + ["leads"]:
                    return self.trackers[roles.index("leads")]
                await asyncio.sleep(0.05)

    async def kill_leader(self) -> TrackerProcess:
        leader = await self.leader()
        self.trackers.remove(leader)
        leader.kill()
        return leader


@asynccontextmanager
async def cluster(
    directory: Path, count: int, *redis_options: str
) -> AsyncIterator[tuple[Cluster, FakeRegistry, Image]]:
    redis = RedisServer(directory / "redis", *redis_options)
    trackers = [TrackerProcess(directory, redis) for _ in range(count)]
    every = list(trackers)
    try:
        async with FakeRegistry() as registry, Fleet(directory, registry, tracked=False, insecure=True) as fleet:
            image = registry.add_image("app/a", "1", [noise(8 * MIB, 1), noise(6 * MIB, 2)])
            registry.fail(Call(Slow()), path="/blobs/.*", method="GET")
            found = Cluster(fleet, redis, trackers)
            await found.leader()
            urls = TrackerConfig(urls=tuple(tracker.url for tracker in trackers))
            patient = (RegistryConfig(name=registry.name, url=registry.url, stall_timeout_seconds=15.0),)
            found.nodes = [await fleet.start(tracker=urls, registries=patient) for _ in range(NODES)]
            await until(lambda: all(node.agent.status()["tracker"]["connected"] for node in found.nodes))
            yield found, registry, image
    finally:
        for tracker in every:
            tracker.kill()
        redis.kill()


async def rollout(found: Cluster, registry: FakeRegistry, image: Image, **faults: Any) -> None:
    """Each fault happens when its share (`at_25`: per cent) has been read."""
    pulls = asyncio.gather(*(found.fleet.pull(node, image) for node in found.nodes))
    whole = sum(len(image.blobs[layer]) for layer in image.layers)

    def read() -> float:
        return sum(registry.bytes_sent(layer) for layer in image.layers) / whole

    for share, fault in faults.items():
        goal = int(share.removeprefix("at_")) / 100
        await until(lambda goal=goal: read() > goal, 60)
        assert not pulls.done()
        await fault()
    await asyncio.wait_for(pulls, 90)
    print(f"upstream copies: {read():.3f}")
    assert read() <= 1.2


async def test_the_leader_is_killed_and_then_the_next_one_together_with_redis(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (found, registry, image):

        async def kill_the_leader() -> None:
            await found.kill_leader()
            begun = time.monotonic()
            await found.leader()
            took = time.monotonic() - begun
            print(f"another one leads after {took:.2f} s")
            assert took < 2.0 * 5  # a machine that is five times slower

        async def kill_leader_and_redis() -> None:
            found.redis.kill()
            await found.kill_leader()

        await rollout(found, registry, image, at_25=kill_the_leader, at_60=kill_leader_and_redis)
        (left,) = found.trackers
        await found.leader()
        health = await found.health(left)
        assert (health["status"], health["role"], health["state"]) == ("ok", "leads", "unreachable")


async def test_redis_is_killed_and_comes_back_with_its_data_and_without(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2, "--appendonly", "yes") as (found, registry, image):
        before = await found.leader()

        async def keep() -> None:
            found.redis.kill()
            await asyncio.sleep(0.5)
            found.redis.start()

        async def lose() -> None:
            found.redis.kill()
            shutil.rmtree(found.redis.directory / "appendonlydir")
            await asyncio.sleep(0.5)
            found.redis.start()

        await rollout(found, registry, image, at_25=keep, at_60=lose)
        assert await found.leader() is before


async def test_a_leader_that_hangs_is_replaced_and_follows_when_it_goes_on(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (found, registry, image):
        frozen = await found.leader()
        (other,) = [tracker for tracker in found.trackers if tracker is not frozen]

        async def freeze() -> None:
            frozen.process.send_signal(signal.SIGSTOP)
            found.trackers.remove(frozen)
            assert await found.leader() is other

        await rollout(found, registry, image, at_25=freeze)
        frozen.process.send_signal(signal.SIGCONT)
        found.trackers.append(frozen)
        assert await found.leader() is other  # and the one that hung follows
