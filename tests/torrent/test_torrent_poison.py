"""Wrong bytes: from a peer that only speaks BitTorrent, passed on by honest nodes, and read by a lying lease holder."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, until
from torrent.torrent_lab import live_of, raw_peer, run_case

from p2pdist.errors import DigestMismatch
from p2pdist.protocol.chunks import chunk_range
from p2pdist.swarm.attest import unpack

CHUNK = 64 * 1024
DATA = random.Random(3).randbytes(12 * CHUNK + 5)
COUNT = 13
ZEROS = bytes(len(DATA))


def test_a_peer_that_sends_wrong_bytes_is_shut_out_and_nothing_of_it_is_ever_proved(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holder, victim = await lab.node("holder"), await lab.node("victim")
        await lab.fetch(holder, DATA, CHUNK)
        exchange = await lab.fetch(victim, DATA, CHUNK)
        proved: list[bool] = []
        exchange.listeners.append(lambda e, k: proved.append(e.read(k * CHUNK, CHUNK) == DATA[k * CHUNK :][:CHUNK]))
        async with AsyncExitStack() as stack:
            liar = await raw_peer(stack, tmp_path, exchange, ZEROS)
            await until(lambda: live_of(victim).current is not None)
            liar.dial(victim)
            await until(lambda: live_of(victim).arrived == exchange.full)  # all of it false, none of it proved
            assert not exchange.have
            lab.link_all()
            for index in range(COUNT):
                lab.give(holder, DATA, index)
            await until(lambda: exchange.whole)
            await exchange.commit(victim.store)
        assert len(proved) == COUNT and all(proved)
        assert exchange.read(0, len(DATA)) == DATA
        assert victim.engine.stats.refused
        assert not victim.host.lied and not holder.host.lied  # the liar has no name, and nobody else did it

    run_case(tmp_path, case)


def test_honest_nodes_that_passed_poison_on_before_they_knew_are_not_accused(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        holder, middle, end = [await lab.node(name) for name in ("holder", "middle", "end")]
        exchanges = [await lab.fetch(node, DATA, CHUNK) for node in (holder, middle, end)]
        async with AsyncExitStack() as stack:
            liar = await raw_peer(stack, tmp_path, exchanges[1], ZEROS)
            end.engine.link([middle.info])
            await until(lambda: live_of(end).current is not None and live_of(middle).current is not None)
            liar.dial(middle)
            await until(lambda: bool(live_of(end).arrived))  # the poison went two hops
            holder.engine.link([middle.info, end.info])
            for index in range(COUNT):
                lab.give(holder, DATA, index)
            await until(lambda: all(exchange.whole for exchange in exchanges))
        for node, exchange in zip((holder, middle, end), exchanges, strict=True):
            await exchange.commit(node.store)
            assert exchange.read(0, len(DATA)) == DATA
            assert not node.host.lied

    run_case(tmp_path, case)


def test_a_lease_holder_that_signs_wrong_bytes_is_found_by_the_digest_and_named_by_its_signature(
    tmp_path: Path,
) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        liar, victim, honest = [await lab.node(name) for name in ("liar", "victim", "honest")]
        await lab.fetch(liar, DATA, CHUNK)
        exchange = await lab.fetch(victim, DATA, CHUNK)
        victim.engine.link([liar.info])
        for index in range(COUNT):
            lab.give(liar, ZEROS if index == 4 else DATA, index)
        await until(lambda: exchange.whole)
        with pytest.raises(DigestMismatch):
            await exchange.commit(victim.store)
        signer = unpack(exchange.attestation(4) or b"").signer.node
        assert signer == liar.attestor.node

        victim.engine.remove(exchange)  # what the swarm service does then: forget, and fetch again
        victim.engine.ban(signer, 60.0)
        start, end = chunk_range(4, len(DATA), CHUNK)
        exchange.forget(4)
        victim.engine.add(exchange)
        await lab.seed(honest, DATA, CHUNK)
        victim.engine.link([honest.info])
        await until(lambda: exchange.whole)
        await exchange.commit(victim.store)
        assert exchange.read(start, end - start) == DATA[start:end]

    run_case(tmp_path, case)
