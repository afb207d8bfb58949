"""Chunks of half a MiB: they come in many pieces, and two receivers may take one at the same time."""

from __future__ import annotations

import os
import random
from pathlib import Path

from support.memnet import MemoryNetwork
from support.swarmlab import Lab, Node, until
from support.virtual import run_virtual

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.swarm.attest import Attestor, unpack
from p2pdist.swarm.exchange import Exchange

CHUNK = 512 * 1024
DATA = random.Random(1).randbytes(3 * CHUNK + 100)


async def two(lab: Lab) -> tuple[Node, Exchange, Node, Exchange]:
    """A node that gives and one that takes, and their exchanges."""
    giver, taker = await lab.node("giver"), await lab.node("taker")
    return giver, await lab.fetch(giver, DATA, CHUNK), taker, await lab.fetch(taker, DATA, CHUNK)


def lab(directory: Path) -> Lab:
    network = MemoryNetwork()

    def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
        return MeshEngine(attestor.node, network.host(name), MeshSettings(), rng)

    return Lab(directory, make)


def test_large_chunks_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab(tmp_path) as laboratory:
            giver, _, taker, taken = await two(laboratory)
            for index in range(4):
                laboratory.give(giver, DATA, index)
            taker.engine.link([giver.info])
            await until(lambda: taken.whole)
            await taken.commit(taker.store)
            assert taken.read(0, len(DATA)) == DATA

    run_virtual(main())


def test_a_large_chunk_with_wrong_bytes_is_refused_and_its_sender_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab(tmp_path) as laboratory:
            giver, given, taker, taken = await two(laboratory)
            laboratory.give(giver, DATA, 0)
            laboratory.give(giver, DATA, 1)
            os.pwrite(given.fd, b"wrong", CHUNK + 7)
            taker.engine.link([giver.info])
            await until(lambda: bool(taker.host.lied))
            assert {(peer, index) for peer, index, _ in taker.host.lied} == {(giver.attestor.node, 1)}
            assert not taken.have >> 1 & 1

    run_virtual(main())


def test_a_peer_is_not_blamed_for_what_another_one_wrote_before_its_chunk_was_proved(tmp_path: Path) -> None:
    async def main() -> None:
        async with lab(tmp_path) as laboratory:
            giver, given, _, taken = await two(laboratory)
            laboratory.give(giver, DATA, 1)
            first, second = taken.receive(1), taken.receive(1)
            for receiver in (first, second):
                receiver.feed(DATA[CHUNK : 2 * CHUNK])
            attestation = unpack(given.attestation(1) or b"")
            assert taken.prove(second, attestation, b"second")
            os.pwrite(taken.fd, b"as if the second had brought others", CHUNK)
            assert first.digest() == attestation.sha256, "of what it took, whatever is in the file"
            assert not taken.prove(first, attestation, b"first"), "redundant, and no PeerError"

    run_virtual(main())
