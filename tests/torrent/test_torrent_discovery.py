"""No tracker and no known peer: nodes on one network segment find each other by local discovery and peer exchange."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lab.lab import Lab as Laboratory
from support.swarmlab import Lab, Node, until

from p2pdist.oci import Digest
from p2pdist.swarm.attest import Attestor
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.settings import TorrentSettings

pytestmark = pytest.mark.system

CHUNK = 64 * 1024
DATA = random.Random(12).randbytes(40 * CHUNK)
COUNT = 40


class Machine:
    """One node in a namespace of its own, on a loop and a thread of its own."""

    def __init__(self, name: str, directory: Path, cluster: Ed25519PrivateKey, host: str) -> None:
        self.name = name
        self.host = host
        self.reads = 0
        self.links = 0
        self.digest: Digest | None = None
        self._directory = directory
        self._cluster = cluster

    def run(self, together: threading.Barrier) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main(together))

    def _make(self, name: str, attestor: Attestor, rng: random.Random) -> TorrentEngine:
        settings = TorrentSettings(self._directory / f"torrent-{name}", host=self.host, discover=True)
        return TorrentEngine(attestor, settings, random.Random(name))

    async def _main(self, together: threading.Barrier) -> None:
        async with Lab(self._directory, self._make, lambda _: self.host) as lab:
            lab.cluster = self._cluster
            node = await lab.node(self.name)
            node.host.on_alone = lambda _, index: self._read(lab, node, index)
            node.engine.orphaned(3)
            exchange = await lab.fetch(node, DATA, CHUNK)
            await until(lambda: exchange.whole)
            self.links = len(node.engine.links())
            await exchange.commit(node.store)
            self.digest = Digest.of(exchange.read(0, len(DATA)))
            await asyncio.to_thread(together.wait)  # nobody leaves before all have it

    def _read(self, lab: Lab, node: Node, index: int) -> None:
        self.reads += 1
        lab.give(node, DATA, index)


def _in_thread(work: Callable[[], None], errors: list[BaseException]) -> threading.Thread:
    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (raised in the test's thread)
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread


def test_three_nodes_without_a_tracker_roll_out_a_blob_with_two_copies_from_upstream_at_most(tmp_path: Path) -> None:
    with Laboratory(logs=tmp_path / "logs") as laboratory:
        hosts = [laboratory.network.host(f"n{number}") for number in range(3)]
        cluster = Ed25519PrivateKey.generate()
        together = threading.Barrier(3, timeout=90.0)
        machines = [Machine(host.name, tmp_path, cluster, host.address) for host in hosts]
        errors: list[BaseException] = []
        threads = [
            _in_thread(lambda host=host, machine=machine: host.call(lambda: machine.run(together)), errors)
            for host, machine in zip(hosts, machines, strict=True)
        ]
        for thread in threads:
            thread.join()
    assert not errors
    assert {machine.digest for machine in machines} == {Digest.of(DATA)}
    assert all(machine.links for machine in machines)
    assert sum(machine.reads for machine in machines) <= 2 * COUNT
