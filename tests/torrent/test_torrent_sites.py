"""Two sites, a gateway each: a blob crosses between them about once, over uTP; the mesh spreads it on both sides."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import run_case

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.mesh.network import TcpNetwork
from p2pdist.oci import Digest
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.gateway import GatewayEngine
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.settings import TorrentSettings, Wan

CHUNK = 64 * 1024
DATA = random.Random(13).randbytes(60 * CHUNK + 9)
COUNT = 61


class Sites(TorrentOnLoopback):
    """Nodes are called `a0`, `b1`...: site and number; number 0 is the site's gateway."""

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.wan = Wan()
        self.outer: dict[str, TorrentEngine] = {}

    def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
        host = self.address(name)
        mesh = MeshEngine(attestor.node, TcpNetwork(), MeshSettings(host="0.0.0.0"), rng)
        if not name.endswith("0"):
            return mesh
        settings = TorrentSettings(self._directory / f"torrent-{name}", host=host, discover=False, wan=self.wan)
        outer = self.outer[name] = TorrentEngine(attestor, settings, rng)
        return GatewayEngine(mesh, outer)


def _across(node: Node, site: str, data: bytes = DATA) -> PeerInfo:
    """How a tracker names another site's gateway for a blob."""
    port = _gateway(node.engine).outer.port
    return PeerInfo(node.attestor.node, node.host_name, port, site, blob=str(Digest.of(data)))


def _gateway(node: object) -> GatewayEngine:
    assert isinstance(node, GatewayEngine)
    return node


def test_a_blob_crosses_between_sites_once_and_spreads_by_the_mesh(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        names = ["a0", "a1", "a2", "b0", "b1", "b2"]
        nodes = {name: await lab.node(name) for name in names}
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes.values()]
        for site in "ab":
            for number in (1, 2):
                nodes[f"{site}{number}"].engine.link([nodes[f"{site}{other}"].info for other in range(number)])
        nodes["a0"].engine.link([_across(nodes["b0"], "b")])
        nodes["b0"].engine.link([_across(nodes["a0"], "a")])
        await until(lambda: len(nodes["a0"].engine.links()) == 3)
        for index in range(COUNT):
            lab.give(nodes[names[index % 3]], DATA, index)  # only site a reads from upstream
        await until(lambda: all(exchange.whole for exchange in exchanges))
        await until(lambda: _gateway(nodes["b0"].engine).outer.stats.bytes_in >= len(DATA))
        for node, exchange in zip(nodes.values(), exchanges, strict=True):
            await exchange.commit(node.store)
            assert exchange.read(0, len(DATA)) == DATA
        crossed = sum(_gateway(nodes[name].engine).outer.stats.bytes_in for name in ("a0", "b0"))
        assert crossed <= 1.1 * len(DATA)
        assert nodes["b0"].engine.name == "mesh+bittorrent"
        assert _gateway(nodes["a0"].engine).site_of(nodes["b0"].attestor.node) == "b"
        assert _gateway(nodes["b0"].engine).site_of(nodes["a0"].attestor.node) == "a"
        assert _gateway(nodes["a0"].engine).site_of(nodes["a1"].attestor.node) is None
        assert {peer.site for peer in nodes["a0"].engine.links()} == {"", "b"}
        assert not any(node.host.lied or node.host.dead for node in nodes.values())

    run_case(tmp_path, case, network=Sites)


def test_the_link_between_sites_is_limited_by_the_wan_class(tmp_path: Path) -> None:
    class Limited(Sites):
        def __init__(self, directory: Path, **settings: object) -> None:
            super().__init__(directory, **settings)
            self.wan = Wan(upload_limit=1_000_000)

    data = DATA[: 30 * CHUNK]

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one, other = await lab.node("a0"), await lab.node("b0")
        await lab.seed(one, data, CHUNK)
        exchange = await lab.fetch(other, data, CHUNK)
        one.engine.link([_across(other, "b", data)])
        other.engine.link([_across(one, "a", data)])
        loop_time = _now()
        await until(lambda: exchange.whole)
        assert _now() - loop_time > 0.8 * len(data) / 1_000_000

    run_case(tmp_path, case, network=Limited)


def _now() -> float:
    return asyncio.get_running_loop().time()
