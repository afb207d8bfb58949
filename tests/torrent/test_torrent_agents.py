"""Whole agents whose engine is BitTorrent: a cold rollout, a late node, and a tracker that goes away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.fleet import Fleet, Node
from support.registry import FakeRegistry, noise

from p2pdist.config import PeerConfig

LAYERS = [noise(3_000_000, 1), noise(1_200_000, 2), noise(400_000, 3)]


async def _start(fleet: Fleet) -> Node:
    host = f"127.0.0.{len(fleet.nodes) + 2}"
    return await fleet.start(peer=PeerConfig(host=host, port=0, advertise_host=host, engine="bittorrent"))


@pytest.mark.parametrize("insecure", [True, False], ids=["plain", "tls"])
async def test_four_agents_pull_an_image_together_with_about_one_copy_from_upstream(
    tmp_path: Path, insecure: bool
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=insecure) as fleet:
        image = registry.add_image("app/a", "1", LAYERS)
        nodes = [await _start(fleet) for _ in range(4)]
        assert {node.agent.status()["peer"]["engine"] for node in nodes} == {"bittorrent"}
        async with asyncio.timeout(60):
            await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        sent = sum(registry.bytes_sent(layer) for layer in image.layers)
        assert sent <= 1.25 * sum(map(len, LAYERS))
        late = await _start(fleet)
        async with asyncio.timeout(60):
            await fleet.pull(late, image)
        assert sum(registry.bytes_sent(layer) for layer in image.layers) <= sent + 0.05 * sum(map(len, LAYERS))


async def test_a_pull_goes_on_when_the_tracker_goes_away(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", LAYERS)
        nodes = [await _start(fleet) for _ in range(3)]
        pulls = [asyncio.ensure_future(fleet.pull(node, image)) for node in nodes]
        await asyncio.sleep(0.3)
        await fleet.stop_tracker()
        async with asyncio.timeout(90):
            await asyncio.gather(*pulls)
