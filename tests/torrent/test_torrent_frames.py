"""What is said on control links: once for many chunks, attestations unasked, and a bound on what is kept of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from engines.engine_networks import TorrentOnLoopback
from support.swarmlab import Lab, Node, until
from torrent.torrent_lab import live_of, run_case

from p2pdist.errors import ProtocolError
from p2pdist.swarm.attest import pack
from p2pdist.torrent import announcing
from p2pdist.torrent.announcing import Announcer
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.links import Link
from p2pdist.torrent.wire import MAX_HAVES, AnyFrame, FrameReader, Have, Need, Proof, encode

CHUNK = 64 * 1024
COUNT = 96
DATA = random.Random(10).randbytes(COUNT * CHUNK)
NODES = 4


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[AnyFrame]:
    said: list[AnyFrame] = []
    send = Link.send

    def seen(link: Link, frame: AnyFrame) -> None:
        said.append(frame)
        send(link, frame)

    monkeypatch.setattr(Link, "send", seen)
    return said


async def _swarm(lab: Lab) -> list[Node]:
    nodes = [await lab.node(f"n{i}") for i in range(NODES)]
    for node in nodes:
        await lab.fetch(node, DATA, CHUNK)
    lab.link_all()
    await until(lambda: all(len(node.engine.links()) == NODES - 1 for node in nodes))
    await until(lambda: all(live_of(node).connections for node in nodes))
    return nodes


def test_an_attestation_travels_once_to_each_neighbour_and_chunks_are_announced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _recorded(monkeypatch)

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        nodes = await _swarm(lab)
        for index in range(COUNT):
            lab.give(nodes[index % NODES], DATA, index)
            if index % 8 == 7:
                await asyncio.sleep(0.05)
        await until(lambda: all(node.exchange is not None and node.exchange.whole for node in nodes))

    run_case(tmp_path, case)
    proofs = sum(isinstance(frame, Proof) for frame in said)
    asked = sum(len(frame.indexes) for frame in said if isinstance(frame, Need))
    announced = [frame for frame in said if isinstance(frame, Have)]
    links = NODES * (NODES - 1)
    assert proofs <= 1.1 * COUNT * (NODES - 1)
    assert asked <= 0.1 * COUNT * (NODES - 1)
    assert len(announced) <= COUNT * links / 4


def test_attestations_that_nobody_asked_for_have_a_bound_and_what_is_asked_for_finds_room(tmp_path: Path) -> None:
    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        node, honest = await lab.node("one"), bytes(32)
        await lab.fetch(node, DATA, CHUNK)
        live = live_of(node)
        taken = [live.vouched(5, bytes([number]) * 32, b"x" * 512) for number in range(1, 10)]
        assert taken == [True] * 3 + [False] * 6
        assert not live.vouched(COUNT, honest, b"x")
        assert not live.vouched(5, honest, b"right")
        live.needs[5] = {honest: 0.0}
        assert live.vouched(5, honest, b"right")
        live.proofs = {index: {} for index in range(4096)}
        live.proofs.pop(7)
        live.proofs[4096] = {}
        assert not live.vouched(7, honest, b"x")

    run_case(tmp_path, case)


def test_a_false_attestation_that_is_pushed_to_everybody_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Announcer, "entered", lambda *_: None)  # the true ones are to be had by asking only,
    monkeypatch.setattr(announcing, "_HAVES", 2.0)  # and who has them says so late

    async def case(lab: Lab, network: TorrentOnLoopback) -> None:
        liar, one, two = [await lab.node(name) for name in ("liar", "one", "two")]
        exchanges = [await lab.fetch(node, DATA[: 8 * CHUNK], CHUNK) for node in (liar, one, two)]
        lab.link_all()
        await until(lambda: all(len(node.engine.links()) == 2 for node in (liar, one, two)))
        assert isinstance(liar.engine, TorrentEngine)
        for index in range(8):
            false = exchanges[0]._attestor.sign(exchanges[0].name, CHUNK, index, bytes(32))
            assert false is not None
            liar.engine._parts.tell(live_of(liar), Proof(live_of(liar).number, index, pack(false)))
        await until(lambda: len(live_of(two).proofs) == 8)
        for index in range(4):
            lab.give(one, DATA[: 8 * CHUNK], index)
        await until(
            lambda: len(live_of(two).landed) == 4, seconds=20.0
        )  # in its file, and the only attestations say otherwise
        for index in range(4, 8):
            lab.give(one, DATA[: 8 * CHUNK], index)
        await until(lambda: exchanges[2].whole)
        await exchanges[2].commit(two.store)
        assert exchanges[2].read(0, 8 * CHUNK) == DATA[: 8 * CHUNK]
        assert not one.host.lied and not two.host.lied
        assert not one.engine.stats.refused and not two.engine.stats.refused  # nothing was fetched again
        signers = {statement.signer.node for _, statement in exchanges[2].disputes}
        assert signers == {liar.attestor.node}  # and its signatures are kept as evidence

    run_case(tmp_path, case)


def test_a_frame_names_a_bounded_number_of_chunks() -> None:
    fits = Have(1, list(range(MAX_HAVES)))
    assert FrameReader().feed(encode(fits)) == [fits]
    for indexes in ([], list(range(MAX_HAVES + 1))):
        with pytest.raises(ProtocolError):
            FrameReader().feed(encode(Have(1, indexes)))
