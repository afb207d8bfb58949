"""One node's preheats: tried again where that may help, said as often as the tracker can take it, never twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.images import Image, make_image, make_index, noise

from p2pdist.errors import DiskFull, PolicyError, StorageError, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import OCI_INDEX, Digest, Repository
from p2pdist.preheat import MAX_JOBS, Preheater
from p2pdist.protocol import messages as wire
from p2pdist.pull import FoundManifest

IMAGE = make_image([noise(70_000), noise(80_000, 1)])
NAME = "ghcr.io/acme/app:1"


class File:
    def close(self) -> None:
        pass


class Handle:
    def __init__(self, source: Source, digest: Digest) -> None:
        self.source, self.digest = source, digest

    async def proved(self) -> File:
        await self.source.gate.wait()
        self.source.brought.append(self.digest)
        return File()

    def release(self) -> None:
        self.source.released += 1


class Source:
    """Gives out images; `errors` are raised first, by whoever asks for a manifest."""

    def __init__(self, *images: Image, errors: tuple[Exception, ...] = ()) -> None:
        self.manifests = {str(one.digest): (one.raw, one.media_type) for one in images}
        self.manifests["1"] = (images[0].raw, images[0].media_type)
        self.errors = list(errors)
        self.asked: list[str] = []
        self.brought: list[Digest] = []
        self.released = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def manifest(self, repository: Repository, target: str) -> FoundManifest:
        self.asked.append(target)
        if self.errors:
            raise self.errors.pop(0)
        raw, media_type = self.manifests[target]
        return FoundManifest(raw, media_type, Digest.of(raw))

    async def blob(self, repository: Repository, digest: Digest) -> Any:
        return Handle(self, digest)


class Swarms:
    nodes = 1

    def __init__(self) -> None:
        self.left: list[Digest] = []

    def arrived(self, digest: Digest) -> int:
        return 0

    async def leave(self, image: Digest) -> None:
        self.left.append(image)


class Node:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.swarms = Swarms()
        self.said: list[wire.Preheated] = []
        self.changed = asyncio.Event()
        self.kept: list[Any] = []
        self.pauses: list[float] = []
        self.waits: list[float] = []
        self.tick = asyncio.Event()
        self.preheater = Preheater(
            source, self.swarms, self.say, self.keep, rng=random.Random(1), pause=self.pause, machine="amd64"
        )

    def say(self, message: Any) -> None:
        self.said.append(message)
        self.changed.set()

    async def keep(self, *what: Any) -> None:
        self.kept.append(what)

    async def pause(self, seconds: float) -> None:
        if seconds in (2.0, 6.0, 18.0):
            self.pauses.append(seconds)
            return
        self.waits.append(seconds)
        self.tick.clear()
        await self.tick.wait()

    async def end(self, number: str = "j") -> wire.Preheated:
        async with asyncio.timeout(20):
            while not (self.said and self.said[-1].id == number and self.said[-1].state in ("done", "failed")):
                self.changed.clear()
                await self.changed.wait()
        return self.said[-1]


@asynccontextmanager
async def node(source: Source) -> AsyncIterator[Node]:
    made = Node(source)
    await made.preheater.start()
    try:
        yield made
    finally:
        await made.preheater.stop()


async def test_an_image_is_pulled_once_however_often_it_is_said() -> None:
    async with node(Source(IMAGE)) as here:
        asked = wire.Preheat("j", NAME, [], 60)
        here.source.gate.clear()
        here.preheater.heard(asked)
        here.preheater.heard(asked)
        here.source.gate.set()
        report = await here.end()
        assert (report.state, report.digest, report.blobs_done, report.blobs) == ("done", str(IMAGE.digest), 3, 3)
        assert report.size_done == report.size == sum(map(len, IMAGE.blobs.values()))
        here.preheater.heard(asked)  # the tracker missed it
        assert here.said[-2:] == [report, report]
        assert sorted(here.source.brought) == sorted(IMAGE.blobs) and here.source.released == 3
        assert [(str(kept[0]), kept[2]) for kept in here.kept] == [(NAME, 60)]


async def test_what_may_work_later_is_tried_again_and_then_no_more() -> None:
    away = UpstreamUnreachable("it is away")
    async with node(Source(IMAGE, errors=(away, StorageError("the disk hiccups")))) as here:
        here.preheater.heard(wire.Preheat("j", NAME))
        assert (await here.end()).state == "done" and here.pauses == [2.0, 6.0]
    async with node(Source(IMAGE, errors=(away,) * 9)) as here:
        here.preheater.heard(wire.Preheat("j", NAME))
        report = await here.end()
        assert (report.state, report.error) == ("failed", "it is away") and here.pauses == [2.0, 6.0, 18.0]


@pytest.mark.parametrize(
    "error", [UpstreamNotFound("no such tag"), PolicyError("unsigned"), DiskFull("no room"), RuntimeError("a bug")]
)
async def test_what_stays_as_it_is_fails_at_once_with_the_reason(error: Exception) -> None:
    async with node(Source(IMAGE, errors=(error,))) as here:
        here.preheater.heard(wire.Preheat("j", NAME))
        report = await here.end()
        assert report.state == "failed" and here.pauses == []
        assert report.error == ("an internal error; the agent's log says more" if str(error) == "a bug" else str(error))


async def test_a_cancelled_preheat_leaves_its_swarms_and_says_nothing_more() -> None:
    async with node(Source(IMAGE)) as here:
        here.source.gate.clear()
        here.preheater.heard(wire.Preheat("j", NAME))
        while here.source.released < 0 or not here.said or not here.said[-1].digest:
            here.changed.clear()
            await here.changed.wait()
        await asyncio.sleep(0)
        here.preheater.heard(wire.CancelPreheat("j"))
        async with asyncio.timeout(20):
            while here.preheater.running:
                await asyncio.sleep(0)
        assert here.swarms.left == [IMAGE.digest] and here.said[-1].state == "pulling"
        here.preheater.heard(wire.CancelPreheat("j"))
        here.preheater.heard(wire.CancelPreheat("other"))


async def test_as_many_wait_as_may_and_two_run() -> None:
    async with node(Source(IMAGE)) as here:
        here.source.gate.clear()
        for number in range(MAX_JOBS):
            here.preheater.heard(wire.Preheat(f"j{number}", NAME))
        here.preheater.heard(wire.Preheat("more", NAME))
        assert here.said[-1].id == "more" and here.said[-1].state == "failed"
        async with asyncio.timeout(20):
            while len(here.source.asked) < 2:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(here.source.asked) == 2
        here.source.gate.set()
        await here.end(f"j{MAX_JOBS - 1}")


async def test_nodes_together_say_no_more_than_the_tracker_can_take() -> None:
    async with node(Source(IMAGE)) as here:
        here.swarms.nodes = 10_000
        here.source.gate.clear()
        here.preheater.heard(wire.Preheat("j", NAME))
        async with asyncio.timeout(20):
            while not here.waits:
                await asyncio.sleep(0)
        assert 10.0 <= here.waits[0] <= 30.0  # 20 s on average
        here.source.gate.set()
        await here.end()


async def test_an_index_in_an_index_and_one_without_this_platform_are_named_as_such() -> None:
    foreign = make_image([b"x"], architecture="s390x")
    raw = make_index([foreign])
    source = Source(IMAGE)
    source.manifests["1"] = (raw, OCI_INDEX)
    async with node(source) as here:
        here.preheater.heard(wire.Preheat("j", NAME))
        assert "no image for linux/amd64" in (await here.end()).error
    nested = make_index([IMAGE])
    source = Source(IMAGE)
    source.manifests["1"] = (nested, OCI_INDEX)
    source.manifests[str(IMAGE.digest)] = (nested, OCI_INDEX)
    async with node(source) as here:
        here.preheater.heard(wire.Preheat("j", NAME))
        assert "index within an index" in (await here.end()).error
