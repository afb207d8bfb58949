"""Every chunk was proved and the whole is wrong: who lied is found by its own signature, for one more copy at most."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from swarm.swarm_script import CHUNK, NOW, Script, play

from p2pdist.errors import DigestMismatch, UpstreamUnreachable
from p2pdist.protocol import messages as wire

DATA = random.Random(5).randbytes(6 * CHUNK + 100)
COUNT = 7
LIES = b"\0" * len(DATA)


def test_only_chunks_that_others_attested_are_read_again_and_the_liar_is_named(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 0, 2)
        await script.until(lambda: exchange.have == 0b11)
        script.bring(exchange, LIES, liar, 3)
        script.bring(exchange, DATA, liar, 4)
        script.bring(exchange, DATA, honest, 2, 5, 6)
        assert (await transfer.done).size == len(DATA)
        assert sorted(script.registry.chunks) == [0, 1, 3, 4]  # own reads are kept, the honest one's are not needed
        assert script.tracker.got(wire.Accuse) == [wire.Accuse(liar.node, exchange.name, 3)]
        assert script.attestor.banned(liar.node, NOW)
        assert not script.attestor.banned(honest.node, NOW)
        assert script.engine.bans == [liar.node]
        assert script.engine.exchanges == [exchange]  # served to peers, now that it is proved
        assert exchange.read(0, len(DATA)) == DATA

    play(tmp_path, case)


def test_two_liars_cost_one_more_copy_at_most(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        members = [script.member() for _ in range(COUNT)]
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        for index, member in enumerate(members):
            script.bring(exchange, LIES if index in (1, 5) else DATA, member, index)
        await transfer.done
        assert sorted(script.registry.chunks) == sorted(set(script.registry.chunks))
        assert {one.peer for one in script.tracker.got(wire.Accuse)} == {members[1].node, members[5].node}

    play(tmp_path, case)


def test_nobody_is_accused_where_the_upstream_itself_was_read_wrong(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest = script.member()
        script.registry.wrong[0] = 1
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 0, 2)
        await script.until(lambda: exchange.have == 0b11)
        script.bring(exchange, DATA, honest, *range(2, COUNT))
        await transfer.done
        assert script.tracker.got(wire.Accuse) == []
        assert script.engine.bans == []

    play(tmp_path, case)


def test_an_upstream_that_sends_wrong_bytes_twice_accuses_nobody_and_the_partial_is_deleted(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        script.registry.wrong[2] = 10
        transfer = script.want(DATA)
        with pytest.raises(DigestMismatch):
            await transfer.done
        assert sorted(script.registry.chunks) == sorted([*range(COUNT)] * 2)
        await script.until(lambda: script.swarms.transfers == [])
        assert script.store.partials() == []
        assert script.tracker.got(wire.Accuse) == []
        script.registry.wrong.clear()
        assert (await script.want(DATA).done).size == len(DATA)

    play(tmp_path, case, connected=False)


def test_an_upstream_that_is_wrong_when_asked_again_makes_no_liar_of_an_honest_member(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest = script.member()
        script.registry.wrong = {0: 10, 2: 10}
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.lease(transfer, 0, 1)
        await script.until(lambda: exchange.have == 1)
        script.bring(exchange, DATA, honest, *range(1, COUNT))
        with pytest.raises(DigestMismatch):
            await transfer.done
        assert script.tracker.got(wire.Accuse) == []
        assert not script.attestor.banned(honest.node, NOW)

    play(tmp_path, case)


def test_while_it_is_settled_no_peer_is_served_and_no_lease_is_taken(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        liar = script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, 0)
        script.bring(exchange, DATA, liar, *range(1, COUNT))
        await script.until(lambda: transfer.doubted)
        assert script.engine.exchanges == []
        assert script.tracker.got(wire.Leave)
        assert not transfer.delivering
        script.lease(transfer, 0, COUNT, alone=True)
        assert transfer.reads == 0
        await transfer.done
        assert len(script.registry.reads) == 1

    play(tmp_path, case)


def test_an_upstream_that_is_gone_when_it_is_needed_ends_the_transfer(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, script.member(), *range(COUNT))
        script.registry.errors += [UpstreamUnreachable("cut")] * 5
        with pytest.raises(UpstreamUnreachable):
            await transfer.done

    play(tmp_path, case)


def test_a_statement_that_contradicted_what_turned_out_true_is_evidence(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, honest, 0)
        script.bring(exchange, LIES, liar, 0)  # came second: not used, not forgotten
        script.bring(exchange, DATA, honest, *range(1, COUNT))
        await transfer.done
        assert script.tracker.got(wire.Accuse) == [wire.Accuse(liar.node, exchange.name, 0)]
        assert script.registry.reads == []

    play(tmp_path, case)


def test_who_was_contradicted_is_suspected_first(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar, other = script.member(), script.member(), script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, 4)
        script.bring(exchange, DATA, liar, 3, 5, 6)
        script.bring(exchange, DATA, other, 4)  # contradicts, and came second
        script.bring(exchange, DATA, honest, 0, 1)
        script.bring(exchange, DATA, other, 2)
        await transfer.done
        assert sorted(script.registry.chunks) == [3, 4, 5, 6]
        assert script.tracker.got(wire.Accuse) == [wire.Accuse(liar.node, exchange.name, 4)]

    play(tmp_path, case)
