"""A node that passes on what it could believe is no liar, even where its signer is not believed here."""

from __future__ import annotations

import random
from pathlib import Path

from support.memnet import MemoryNetwork
from support.swarmlab import Lab, until
from support.virtual import run_virtual

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.swarm.attest import Attestor

CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(4 * CHUNK)


def test_who_passes_on_a_banned_signers_chunk_is_neither_banned_nor_accused(tmp_path: Path) -> None:
    async def main() -> None:
        network = MemoryNetwork()

        def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
            return MeshEngine(attestor.node, network.host(name), MeshSettings(), rng)

        async with Lab(tmp_path, make) as lab:
            liar, honest, here = [await lab.node(name) for name in ("liar", "honest", "here")]
            exchanges = [await lab.fetch(node, DATA, CHUNK) for node in (liar, honest, here)]
            honest.engine.link([liar.info])
            await until(lambda: len(honest.engine.links()) == 1)
            lab.give(liar, DATA, 0)
            lab.give(honest, DATA, 1)
            await until(lambda: exchanges[1].have == 0b11)
            here.attestor.ban(liar.attestor.node, 1e12)
            here.engine.link([honest.info])
            await until(lambda: exchanges[2].have == 0b10)
            await until(lambda: any(0 in indexes for indexes in here.host.missing))  # to be leased again
            assert here.host.lied == []
            assert [peer.node for peer in here.engine.links()] == [honest.attestor.node]
            lab.give(honest, DATA, 2)
            await until(lambda: exchanges[2].have == 0b110)

    run_virtual(main())
