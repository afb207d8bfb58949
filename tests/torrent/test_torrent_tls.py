"""Mutual TLS, on control links and in BitTorrent: members of the cluster exchange blobs, nobody else gets in."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import Case, live_of, run_case

from p2pdist.pki import Authority, Role, TlsCredentials
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.session import Session
from p2pdist.torrent.settings import Material, TorrentTls

CHUNK = 64 * 1024
DATA = random.Random(11).randbytes(10 * CHUNK + 3)


class Cluster:
    """Issues what a node needs."""

    def __init__(self) -> None:
        self.authority = Authority.create(time.time())

    def tls(self, key: Ed25519PrivateKey, role: Role = Role.NODE) -> TorrentTls:
        credentials = TlsCredentials()
        certificate = self.authority.issue(key.public_key(), role, {}, time.time(), 3600.0)
        credentials.use(certificate, key, self.authority.pem)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        material = Material(self.authority.cluster, self.authority.pem.decode(), certificate.decode(), pem.decode())
        return TorrentTls(credentials.server, credentials.client, Role.NODE.host, credentials.node, lambda: material)


class TlsNetwork(TorrentOnLoopback):
    """`of` says which cluster and role a node's certificate has; by default one cluster's node."""

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory, **settings)
        self.cluster = Cluster()
        self.of: dict[str, tuple[Cluster, Role]] = {}

    def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
        cluster, role = self.of.get(name, (self.cluster, Role.NODE))
        self._settings["tls"] = cluster.tls(attestor._key, role)
        return super().make(name, attestor, rng)


def test_members_exchange_a_cold_blob_and_a_mapped_one_over_tls(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        nodes = [await lab.node(f"n{i}") for i in range(3)]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in nodes]
        lab.link_all()
        for index in range(11):
            lab.give(nodes[index % 3], DATA, index)
        await until(lambda: all(exchange.whole for exchange in exchanges))
        for node, exchange in zip(nodes, exchanges, strict=True):
            await exchange.commit(node.store)
        late = await lab.node("late")
        last = await lab.fetch(late, DATA, CHUNK)
        late.engine.link([nodes[0].info])
        await until(lambda: last.whole)
        await last.commit(late.store)
        assert last.read(0, len(DATA)) == DATA

    run_case(tmp_path, case, network=TlsNetwork)


def _refused(tmp_path: Path, prepare: Case) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        await prepare(lab, network)
        member, other = await lab.node("member"), await lab.node("other")
        await lab.seed(member, DATA, CHUNK)
        exchange = await lab.fetch(other, DATA, CHUNK)
        other.engine.link([member.info])
        await until(lambda: live_of(other).current is not None)
        live_of(other).connections = 1  # a dial past the control link: libtorrent alone must refuse
        assert isinstance(other.engine, TorrentEngine)
        other.engine._parts.torrents.connect(live_of(other), [(member.host_name, member.engine.port)])
        third = await lab.node("third")  # meanwhile a member gets it
        mine = await lab.fetch(third, DATA, CHUNK)
        third.engine.link([member.info])
        await until(lambda: mine.whole)
        assert not exchange.have and not live_of(other).arrived
        assert not other.engine.links()

    run_case(tmp_path, case, network=TlsNetwork)


def test_a_node_of_another_cluster_gets_no_link_and_no_bytes(tmp_path: Path) -> None:
    async def prepare(lab: Lab, network: TorrentOnLoopback) -> None:
        assert isinstance(network, TlsNetwork)
        network.of["other"] = (Cluster(), Role.NODE)

    _refused(tmp_path, prepare)


def test_a_trackers_certificate_moves_no_chunks(tmp_path: Path) -> None:
    async def prepare(lab: Lab, network: TorrentOnLoopback) -> None:
        assert isinstance(network, TlsNetwork)
        network.of["other"] = (network.cluster, Role.TRACKER)

    _refused(tmp_path, prepare)


def test_a_node_without_a_certificate_waits_for_one(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        assert isinstance(network, TlsNetwork)
        one, two = await lab.node("one"), await lab.node("two")
        assert isinstance(two.engine, TorrentEngine) and two.engine.settings.tls is not None
        tls = two.engine.settings.tls
        there: list[Material] = []
        late = TorrentTls(tls.server, tls.client, tls.name, tls.identify, lambda: there[0] if there else None)
        object.__setattr__(two.engine.settings, "tls", late)
        await lab.seed(one, DATA, CHUNK)
        exchange = await lab.fetch(two, DATA, CHUNK)
        two.engine.link([one.info])
        await until(lambda: live_of(two).retry_at is not None)
        material = tls.material()
        assert material is not None
        there.append(material)
        await until(lambda: exchange.whole)

    run_case(tmp_path, case, network=TlsNetwork)


def test_a_renewed_certificate_is_shown_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Session, "certify", lambda session: told.append("certify"))

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one = await lab.node("one")
        assert isinstance(one.engine, TorrentEngine) and one.engine.settings.tls is not None
        await until(lambda: len(told) == 2)  # once for each session
        material = one.engine.settings.tls.material()
        assert material is not None
        renewed = TorrentTls(*_fields(one.engine.settings.tls), lambda: replace(material, certificate="renewed"))
        object.__setattr__(one.engine.settings, "tls", renewed)
        one.engine._upkeep._certified -= 10.0
        await until(lambda: len(told) == 4)

    run_case(tmp_path, case, network=TlsNetwork)


def test_nodes_of_two_authorities_keep_apart_and_meet_again_once_both_have_changed(tmp_path: Path) -> None:
    """libtorrent takes one authority for a torrent, the first of a text: while the cluster's changes, each group is one
    of its own and asks for what the other has, and nobody waits for a neighbour that libtorrent refuses."""
    old, new = Cluster(), Cluster()
    bundles = {old: (old.authority.pem + new.authority.pem), new: (new.authority.pem + old.authority.pem)}
    held: dict[bytes, tuple[TlsCredentials, Ed25519PrivateKey]] = {}
    shown: dict[bytes, Material] = {}

    def renew(node: bytes, cluster: Cluster) -> None:
        credentials, key = held[node]
        certificate = cluster.authority.issue(key.public_key(), Role.NODE, {}, time.time(), 3600.0)
        credentials.use(certificate, key, bundles[cluster])
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        shown[node] = Material(cluster.authority.cluster, cluster.authority.pem.decode(), certificate.decode(), pem)

    class Changing(TorrentOnLoopback):
        def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
            credentials, node = TlsCredentials(), attestor.node
            held[node] = (credentials, attestor._key)
            renew(node, old)
            self._settings["tls"] = TorrentTls(
                credentials.server, credentials.client, Role.NODE.host, credentials.sibling, lambda: shown[node]
            )
            return super().make(name, attestor, rng)

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        one, two = await lab.node("one"), await lab.node("two")
        await lab.seed(one, DATA, CHUNK)
        two.engine.link([one.info])
        await until(lambda: bool(one.engine.links() and two.engine.links()))
        await _changed(one, renew, new)
        await until(lambda: not one.engine.links() and not two.engine.links())
        exchange = await lab.fetch(two, DATA, CHUNK)
        two.engine.link([one.info])
        await until(lambda: bool(two.host.missing))  # it is to read them itself
        assert not exchange.have and not two.engine.links()
        lab.give(two, DATA, 3)
        await _changed(two, renew, new)
        two.engine.link([one.info])
        await until(lambda: exchange.whole)

    run_case(tmp_path, case, network=Changing)


async def _changed(node: Node, renew: Callable[[bytes, Cluster], None], cluster: Cluster) -> None:
    assert isinstance(node.engine, TorrentEngine)
    upkeep = node.engine._upkeep
    await until(lambda: bool(upkeep._cluster))
    renew(node.attestor.node, cluster)
    upkeep._certified -= 10.0
    await until(lambda: upkeep._cluster == cluster.authority.cluster)


def _fields(tls: TorrentTls) -> tuple[Any, ...]:
    return (tls.server, tls.client, tls.name, tls.identify)
