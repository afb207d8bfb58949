"""Every chunk was proved and the whole is wrong: who lied is found by its own signature, for one more copy at most."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from swarm.swarm_script import CHUNK, EXPIRES, NOW, Script, play

from p2pdist.errors import DigestMismatch, SignerRefused, UpstreamUnreachable
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.swarm.attest import Attestor, unpack
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.transfers import Transfer

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
        (charge,) = script.tracker.got(wire.Convict)
        assert (charge.statement.signer.node, charge.digest, charge.index) == (liar.node, exchange.name, 3)
        assert script.tracker.got(wire.Settled) == [wire.Settled(exchange.name, CHUNK, [3])]
        order = [type(one) for one in script.tracker.sent if isinstance(one, wire.Done | wire.Settled)]
        assert order[0] is wire.Done  # before the others hear where to take it from
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
        assert {one.statement.signer.node for one in script.tracker.got(wire.Convict)} == {
            members[1].node,
            members[5].node,
        }

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
        assert script.tracker.got(wire.Convict) == []
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
        assert script.tracker.got(wire.Convict) == []
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
        assert script.tracker.got(wire.Convict) == []
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
        assert [(one.statement.signer.node, one.index) for one in script.tracker.got(wire.Convict)] == [(liar.node, 0)]
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
        assert [(one.statement.signer.node, one.index) for one in script.tracker.got(wire.Convict)] == [(liar.node, 4)]

    play(tmp_path, case)


async def hinted(script: Script, honest: Attestor, liar: Attestor, hint: list[int]) -> tuple[Transfer, Exchange]:
    """A blob of which the liar's chunk 2 is false, and whose node has joined again with what another one found."""
    script.tracker.hints = [hint]
    transfer = script.want(DATA)
    exchange = await script.joined(transfer)
    script.bring(exchange, LIES, liar, 2)
    script.bring(exchange, DATA, honest, 0, 1, *range(3, COUNT))
    joins = len(script.tracker.got(wire.Join))
    await script.until(lambda: len(script.tracker.got(wire.Join)) > joins)
    return transfer, exchange


def test_what_another_node_found_false_is_taken_from_the_swarm_and_not_from_upstream(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        transfer, exchange = await hinted(script, honest, liar, [2, 99])
        assert script.tracker.got(wire.Join)[-1].wants[0].have == bytes([0b1111011])
        with pytest.raises(SignerRefused):
            script.bring(exchange, LIES, liar, 2)
        script.bring(exchange, DATA, honest, 2)
        await transfer.done
        assert script.registry.reads == []
        assert [one.statement.signer.node for one in script.tracker.got(wire.Convict)] == [liar.node]

    play(tmp_path, case)


def test_who_has_the_true_one_of_two_statements_keeps_it_although_another_node_found_the_false_one(
    tmp_path: Path,
) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        hint = [0, 2]  # of both the one who searched had the liar's
        transfer, exchange = await hinted(script, honest, liar, hint)
        began = asyncio.get_running_loop().time()
        script.bring(exchange, DATA, honest, 2)
        with pytest.raises(SignerRefused):
            script.bring(exchange, DATA, honest, 0)  # at first; nobody has others
        await transfer.done
        assert asyncio.get_running_loop().time() - began < 10.0
        assert script.registry.reads == []
        assert [one.statement.signer.node for one in script.tracker.got(wire.Convict)] == [liar.node]

    play(tmp_path, case)


def test_a_false_hint_costs_a_moment_and_then_the_node_searches_itself(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        script.tracker.hints = [[0], [99]]
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, 2)
        script.bring(exchange, DATA, honest, 0, 1, *range(3, COUNT))
        await transfer.done  # nobody brings other bytes for chunk 0: there are none
        assert sorted(script.registry.chunks) == sorted(set(script.registry.chunks))
        assert [one.statement.signer.node for one in script.tracker.got(wire.Convict)] == [liar.node]

    play(tmp_path, case)


@pytest.mark.parametrize("goes", [False, True])
def test_a_tracker_that_says_nothing_or_goes_away_does_not_keep_a_node_in_doubt(tmp_path: Path, goes: bool) -> None:
    async def case(script: Script) -> None:
        script.tracker.answer = lambda message: None
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        began = asyncio.get_running_loop().time()
        script.bring(exchange, LIES, script.member(), *range(COUNT))
        await script.until(lambda: bool(script.tracker.got(wire.Doubts)))
        if goes:
            script.tracker.connected = False
            script.swarms.tracker_state(False)
        await transfer.done
        assert asyncio.get_running_loop().time() - began < (5.0 if goes else 30.0)

    play(tmp_path, case)


def test_two_statements_of_one_signer_are_sent_together(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, DATA, liar, 0)
        script.bring(exchange, LIES, liar, 0)
        script.bring(exchange, DATA, honest, *range(1, COUNT))
        await transfer.done
        (charge,) = script.tracker.got(wire.Convict)
        assert charge.other is not None and charge.other.sha256 != charge.statement.sha256
        assert charge.other.signer.node == charge.statement.signer.node == liar.node

    play(tmp_path, case)


def test_the_blob_is_shown_as_proof_and_no_other(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        liar = script.member()
        other = await script.store.put(b"private", Digest.of(b"private"))
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, *range(COUNT))
        await transfer.done
        script.swarms.tracker_message(wire.Show(exchange.name, 100, 1000))
        script.swarms.tracker_message(wire.Show(str(other.digest), 0, 7))
        await script.until(lambda: len(script.tracker.got(wire.Shown)) == 2)
        shown = {message.digest: message for message in script.tracker.got(wire.Shown)}
        assert shown[exchange.name] == wire.Shown(exchange.name, 100, DATA[100:1100])
        assert shown[str(other.digest)].data == b""
        charges = len(script.tracker.got(wire.Convict))
        script.swarms.tracker_message(wire.Welcome(script.attestor.membership, script.attestor.cluster_key, 30.0, 2))
        assert len(script.tracker.got(wire.Convict)) == charges + 1  # a new session hears it again ...
        script.swarms.tracker_message(wire.Banned(liar.node, int(NOW + 3600)))
        script.swarms.tracker_message(wire.Welcome(script.attestor.membership, script.attestor.cluster_key, 30.0, 2))
        assert len(script.tracker.got(wire.Convict)) == charges + 1  # ... until the cluster knows
        script.swarms.tracker_message(wire.Show(exchange.name, 0, 1))
        assert script.tracker.got(wire.Shown)[-1].data == b""

    play(tmp_path, case)


def test_a_node_never_signs_what_it_did_not_read_itself_before_the_whole_is_proved(tmp_path: Path) -> None:
    """Else a liar whose membership ends soon would get the honest node that resumes its partial convicted."""

    async def case(script: Script) -> None:
        liar = script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, 3)
        exchange._clock = lambda: EXPIRES + 1.0
        packed = exchange.attestation(3)
        assert packed is not None and unpack(packed).signer.node == liar.node
        script.lease(transfer, 0)
        await script.until(lambda: exchange.have & 1 == 1)
        own = exchange.attestation(0)
        assert own is not None and unpack(own).signer.node == script.attestor.node

    play(tmp_path, case)


def test_what_a_banned_node_attested_of_a_blob_on_its_way_is_taken_from_others(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        transfer = script.want(DATA)
        exchange = await script.joined(transfer)
        script.bring(exchange, LIES, liar, 2, 4)
        script.bring(exchange, DATA, honest, 0, 1)
        doubts = exchange.doubts
        script.swarms.tracker_message(wire.Banned(liar.node, int(NOW)))  # a ban that was lifted changes nothing
        assert exchange.have == 0b10111
        script.swarms.tracker_message(wire.Banned(liar.node, int(NOW + 3600)))
        assert exchange.have == 0b00011
        assert exchange.doubts == doubts + 1  # streams that passed them must stop
        assert script.engine.exchanges == [exchange]
        assert script.tracker.got(wire.Join)[-1].wants[0].have == bytes([0b11])
        script.bring(exchange, DATA, honest, *range(2, COUNT))
        await transfer.done
        assert script.registry.reads == [] and script.tracker.got(wire.Doubts) == []

    play(tmp_path, case)


def test_who_lies_often_is_found_by_one_chunk_of_each_signer(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        data = random.Random(6).randbytes(60 * CHUNK)
        members = [script.member() for _ in range(5)]
        transfer = script.want(data)
        exchange = await script.joined(transfer)
        for index in range(60):  # the fourth has most chunks, and would be read last
            member = index % 5 if index < 50 else 3
            script.bring(exchange, b"\0" * len(data) if member == 3 else data, members[member], index)
        await transfer.done
        lies = {index for index in range(60) if index % 5 == 3 or index >= 50}
        assert len(script.registry.chunks) <= len(lies) + 4
        assert lies <= set(script.registry.chunks)
        assert sorted(script.registry.chunks) == sorted(set(script.registry.chunks))
        assert [one.statement.signer.node for one in script.tracker.got(wire.Convict)] == [members[3].node]

    play(tmp_path, case)


def test_a_liar_that_is_caught_with_one_layer_is_not_believed_in_the_next(tmp_path: Path) -> None:
    async def case(script: Script) -> None:
        honest, liar = script.member(), script.member()
        other = random.Random(7).randbytes(6 * CHUNK)
        first = script.want(DATA, other)
        (second,) = (one for one in script.swarms.transfers if one is not first)
        names = [str(one.blob.digest) for one in (first, second)]
        await script.until(lambda: bool(script.tracker.got(wire.Join)))
        script.swarms.tracker_message(wire.Joined(names[0], [wire.Swarm(name, CHUNK, 2, 0) for name in names], []))
        await first.ready.wait()
        await second.ready.wait()
        script.bring(second.exchange, LIES, liar, 1, 2)
        script.bring(second.exchange, other, honest, 0)
        script.bring(first.exchange, LIES, liar, 0)
        script.bring(first.exchange, DATA, honest, *range(1, COUNT))
        await first.done
        assert second.exchange.have == 1
        script.bring(second.exchange, other, honest, *range(1, 6))
        await second.done
        assert len(script.tracker.got(wire.Doubts)) == 1

    play(tmp_path, case)
