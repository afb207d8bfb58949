"""Whole agents in two zones: each chunk comes into a zone once, however the other zone has it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.faults import Call
from support.fleet import Fleet, Node, until
from support.registry import FakeRegistry, Image, noise

from p2pdist.config import NodeConfig

MIB = 1 << 20


async def start(fleet: Fleet, zone: str) -> Node:
    """An agent of that zone."""
    name = f"node-{len(fleet.nodes) + 2}"
    config = NodeConfig(name=name, data_dir=fleet.directory / name, shutdown_seconds=1.0, labels=(f"zone={zone}",))
    return await fleet.start(name, node=config)


def copies(registry: FakeRegistry, image: Image) -> float:
    return sum(registry.bytes_sent(layer) for layer in image.layers) / sum(len(image.blobs[d]) for d in image.layers)


async def zones(fleet: Fleet, one: int, two: int) -> tuple[list[Node], list[Node]]:
    return [await start(fleet, "one") for _ in range(one)], [await start(fleet, "two") for _ in range(two)]


@pytest.mark.parametrize("insecure", [False, True])
async def test_a_cold_rollout_crosses_once_and_reads_upstream_once(tmp_path: Path, insecure: bool) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=insecure) as fleet:
        image = registry.add_image("app/a", "1", [noise(3 * MIB, 1), noise(2 * MIB, 2)])
        one, two = await zones(fleet, 2, 2)
        await asyncio.gather(*(fleet.pull(node, image) for node in one + two))
        counters = tracker(fleet).counters
        assert copies(registry, image) <= 1.05
        # what one zone read from upstream crosses to the other
        assert 0.95 <= (counters.bytes_carried + MIB // 4) / (5 * MIB) <= 1.1, counters.bytes_carried / (5 * MIB)


async def test_a_warm_zone_gives_to_a_cold_one_with_the_upstream_gone(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(3 * MIB, 1)])
        one, two = await zones(fleet, 1, 2)
        await fleet.pull(one[0], image)
        before = copies(registry, image)
        await asyncio.gather(*(fleet.pull(node, image) for node in two))
        assert copies(registry, image) == before
        assert 0.95 <= tracker(fleet).counters.bytes_carried / (3 * MIB) <= 1.1
        assert one[0].transfer["bytes_to_peers"] <= 1.1 * 3 * MIB


async def test_when_the_other_zone_dies_the_upstream_is_read(tmp_path: Path) -> None:
    async def slowly(request: Any) -> None:
        await asyncio.sleep(0.05)

    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(6 * MIB, 1)])
        registry.fail(Call(slowly), path="/blobs/")
        one, two = await zones(fleet, 1, 2)
        async with asyncio.TaskGroup() as pulls:
            first = pulls.create_task(fleet.get(one[0], "blobs", image.layers[0]))
            for node in two:
                pulls.create_task(fleet.pull(node, image))
            await until(lambda: registry.bytes_sent(image.layers[0]) >= MIB)
            await fleet.stop(one[0])
            fleet.nodes.remove(one[0])
            first.cancel()


async def test_with_the_tracker_gone_the_zones_go_on_across_their_links(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", [noise(4 * MIB, 1)])
        one, two = await zones(fleet, 1, 1)
        release = asyncio.Event()

        async def held(request: Any) -> None:
            if registry.bytes_sent(image.layers[0]) >= MIB:
                await release.wait()

        registry.fail(Call(held), path="/blobs/" + str(image.layers[0]))
        async with asyncio.TaskGroup() as pulls:
            for node in one + two:
                pulls.create_task(fleet.pull(node, image))
            await until(lambda: registry.bytes_sent(image.layers[0]) >= MIB)
            await until(lambda: all(node.agent.status()["peer"]["links"] for node in one + two))
            await fleet.stop_tracker()
            release.set()
        assert copies(registry, image) <= 1.25


def tracker(fleet: Fleet) -> Any:
    assert fleet.tracker is not None
    return fleet.tracker.cluster.swarms
