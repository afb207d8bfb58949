"""Whole agents in two sites: a gateway each, chosen by the tracker; the mesh inside; what `status` says of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import Fleet, Node, until
from support.registry import FakeRegistry, noise

from p2pdist.config import AgentConfig, NodeConfig, PeerConfig, SiteConfig
from p2pdist.engines import make_engine
from p2pdist.errors import ConfigError
from p2pdist.swarm.attest import Attestor

LAYERS = [noise(3_000_000, 1), noise(1_200_000, 2)]
SIZE = sum(map(len, LAYERS))


async def _start(fleet: Fleet, site: str) -> Node:
    name = f"{site}{len(fleet.nodes)}"
    host = f"127.0.0.{len(fleet.nodes) + 2}"
    return await fleet.start(
        name,
        node=NodeConfig(name=name, data_dir=fleet.directory / name, labels=(f"site={site}",), shutdown_seconds=1.0),
        peer=PeerConfig(host=host, port=0, advertise_host=host),
        site=SiteConfig(gateway=True, gateway_port=0, far_from_upstream=site == "two"),
    )


def _across(node: Node) -> dict[str, Any]:
    inside, across = node.agent.status()["engines"]
    assert (inside["engine"], inside["carries"]) == ("mesh", f"chunks in site {node.config.node.name[:3]}")
    assert (across["engine"], across["carries"]) == ("bittorrent", "chunks with other sites")
    return dict(across)


@pytest.mark.parametrize("insecure", [True, False], ids=["plain", "tls"])
async def test_an_image_crosses_between_two_sites_about_once_and_status_says_by_which_engine(
    tmp_path: Path, insecure: bool
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=insecure) as fleet:
        image = registry.add_image("app/a", "1", LAYERS)
        one = [await _start(fleet, "one") for _ in range(2)]
        two = [await _start(fleet, "two") for _ in range(2)]
        seen: list[dict[str, Any]] = []

        async def look() -> None:
            while True:
                for node in two:
                    for transfer in node.agent.status()["transfers"]:
                        seen.extend(transfer["from_peers"])
                await asyncio.sleep(0.02)

        looking = asyncio.ensure_future(look())
        async with asyncio.timeout(90):
            await asyncio.gather(*(fleet.pull(node, image) for node in (*one, *two)))
        looking.cancel()
        assert sum(registry.bytes_sent(layer) for layer in image.layers) <= 1.15 * SIZE
        assert sum(node.transfer["bytes_from_upstream"] for node in two) < 0.1 * SIZE  # small blobs
        # libtorrent's counters are read twice a second
        await until(lambda: sum(_across(node)["bytes_in"] for node in two) >= 0.9 * SIZE)
        assert sum(_across(node)["bytes_in"] for node in two) <= 1.1 * SIZE
        assert sum(_across(node)["bytes_in"] for node in one) <= 0.05 * SIZE
        plain = {_across(node)["encryption"].split(",")[0] for node in (*one, *two)}
        assert plain == {"none" if insecure else "mutual TLS"}
        assert {(part["engine"], part["site"]) for part in seen} == {("bittorrent", "one"), ("mesh", "two")}


async def test_a_site_that_comes_later_takes_the_image_through_the_gateways_with_the_registry_gone(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True) as fleet:
        image = registry.add_image("app/a", "1", LAYERS)
        one = [await _start(fleet, "one") for _ in range(2)]
        await asyncio.gather(*(fleet.pull(node, image) for node in one))
        before = sum(registry.bytes_sent(layer) for layer in image.layers)
        two = [await _start(fleet, "two") for _ in range(2)]
        async with asyncio.timeout(90):
            await asyncio.gather(*(fleet.pull(node, image) for node in two))
        assert sum(registry.bytes_sent(layer) for layer in image.layers) == before


def test_a_gateway_that_does_not_know_its_site_is_a_configuration_error(tmp_path: Path) -> None:
    config = replace(AgentConfig(), site=SiteConfig(gateway=True))
    key = Ed25519PrivateKey.generate()
    with pytest.raises(ConfigError, match="site=a"):
        make_engine(config, Attestor(key), key, None)
