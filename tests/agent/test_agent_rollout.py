"""The whole way with nothing faked but the upstream: agents exchange chunks, fed by leases from a tracker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.fleet import Fleet, until
from support.registry import Cut, FakeRegistry, Image, Status, noise

MIB = 1 << 20


def image_of(registry: FakeRegistry, *sizes: int) -> Image:
    return registry.add_image("app/a", "1", [noise(size, seed) for seed, size in enumerate(sizes)])


def upstream_copies(registry: FakeRegistry, image: Image) -> float:
    return sum(registry.bytes_sent(layer) for layer in image.layers) / sum(len(image.blobs[d]) for d in image.layers)


async def test_a_cold_rollout_takes_one_copy_from_upstream(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 3 * MIB, 5 * MIB, 2 * MIB)
        nodes = [await fleet.start() for _ in range(4)]
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert upstream_copies(registry, image) <= 1.05
        assert len(registry.requests(r"/manifests/", "GET")) <= 2
        assert sum(node.transfer["bytes_from_peers"] for node in nodes) >= 2.9 * 10 * MIB


async def test_a_node_that_comes_later_takes_everything_from_the_others(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 6 * MIB)
        await fleet.pull(await fleet.start(), image)
        before = upstream_copies(registry, image)
        late = await fleet.start()
        await fleet.pull(late, image)
        assert upstream_copies(registry, image) == before
        assert late.transfer["bytes_from_upstream"] == 0


async def test_with_the_upstream_gone_the_others_still_get_it_all_by_tag(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 3 * MIB)
        await fleet.pull(await fleet.start(), image)
        registry.fail(Status(503))
        await fleet.pull(await fleet.start(), image)


async def test_a_tag_that_moved_is_seen_after_the_refresh_interval_and_asked_for_once(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 100)
        nodes = [await fleet.start() for _ in range(3)]
        answers = await asyncio.gather(*(fleet.get(node, "manifests", "1") for node in nodes))
        assert {raw for _, raw in answers} == {image.raw}
        assert len(registry.requests(r"/manifests/1$", "GET")) == 1


async def test_one_agent_alone_streams_and_others_join_in_the_middle(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 24 * MIB)
        nodes = [await fleet.start() for _ in range(3)]
        first = asyncio.ensure_future(fleet.pull(nodes[0], image))
        await until(lambda: nodes[0].transfer["bytes_from_upstream"] > MIB)
        await asyncio.gather(first, *(fleet.pull(node, image) for node in nodes[1:]))
        read = sum(node.transfer["bytes_from_upstream"] for node in nodes)
        assert read <= 1.05 * 24 * MIB
        assert upstream_copies(registry, image) <= 1.4  # with what loopback's buffers held when the stream was ended


async def test_without_any_tracker_a_lone_agent_pulls_at_once(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        image = image_of(registry, 3 * MIB, 1 * MIB)
        node = await fleet.start()
        began = asyncio.get_running_loop().time()
        await fleet.pull(node, image)
        assert upstream_copies(registry, image) == 1.0
        assert asyncio.get_running_loop().time() - began < 4.0


async def test_a_tracker_that_dies_midway_costs_no_pull(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 24 * MIB)
        nodes = [await fleet.start() for _ in range(3)]
        pulls = [asyncio.ensure_future(fleet.pull(node, image)) for node in nodes]
        await until(lambda: sum(node.transfer["bytes_from_upstream"] for node in nodes) > 2 * MIB)
        await fleet.stop_tracker()
        await asyncio.gather(*pulls)
        assert upstream_copies(registry, image) <= 1.2


async def test_an_agent_that_dies_midway_costs_no_pull(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 24 * MIB)
        nodes = [await fleet.start() for _ in range(4)]
        pulls = [asyncio.ensure_future(fleet.pull(node, image)) for node in nodes[:3]]
        dying = asyncio.ensure_future(fleet.get(nodes[3], "blobs", image.layers[0]))
        await until(lambda: nodes[3].transfer["bytes_from_peers"] > MIB)
        nodes[3].task.cancel()
        await asyncio.gather(*pulls)
        with pytest.raises(asyncio.CancelledError):
            await nodes[3].task
        dying.cancel()
        fleet.nodes.remove(nodes[3])
        assert upstream_copies(registry, image) <= 1.1


async def test_a_restart_resumes_what_was_proved(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        image = image_of(registry, 16 * MIB)
        node = await fleet.start("phoenix")
        registry.fail(Cut(after=8 * MIB), path="/blobs/", method="GET", times=1)
        registry.fail(Status(503), path="/blobs/", method="GET", times=50)
        pull = asyncio.ensure_future(fleet.get(node, "blobs", image.layers[0]))
        await until(lambda: node.transfer["bytes_from_upstream"] >= 7 * MIB)
        await fleet.stop(node)
        await pull
        fleet.nodes.remove(node)
        registry.heal()
        again = await fleet.run(node.config)
        await fleet.pull(again, image)
        assert upstream_copies(registry, image) <= 1.1


async def test_what_the_mirror_answered_is_counted(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        image = image_of(registry, MIB)
        node = await fleet.start()
        await fleet.pull(node, image)
        assert (await fleet.get(node, "manifests", "missing"))[0] == 404
        mirror = node.agent.status()["mirror"]
        assert mirror["answers"] == {"blob": {"200": 2}, "manifest": {"200": 1, "404": 1}}
        assert mirror["bytes"] > MIB
