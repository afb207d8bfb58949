"""Reading from upstream with no tracker: who may, and that nobody reads twice."""

from __future__ import annotations

import random

from p2pdist.torrent.alone import Orphaned, bits, choose

BLOB = "sha256:" + "a" * 64
NODES = [bytes([n]) * 32 for n in range(12)]
FULL = (1 << 200) - 1


def _choice(me: bytes, rivals: list[bytes], now: float, **other: object) -> int | None:
    arguments = {
        "wanted": FULL,
        "claims": {},
        "chunk_time": 0.1,
        "orphaned": Orphaned(0.0, len(rivals) + 1),
        "rng": random.Random(1),
        **other,
    }
    return choose(BLOB, me=me, rivals=rivals, now=now, **arguments)  # type: ignore[arg-type]


def test_nobody_reads_in_the_first_second_without_a_tracker() -> None:
    assert _choice(NODES[0], [], 0.99) is None
    assert _choice(NODES[0], [], 1.01) is not None


def test_every_chunk_has_exactly_one_reader_among_nodes_that_know_each_other() -> None:
    for index in range(200):
        owners = [
            node for node in NODES if _choice(node, [n for n in NODES if n != node], 1.5, wanted=1 << index) is not None
        ]
        assert len(owners) == 1


def test_what_a_neighbour_claimed_is_left_to_it_and_taken_over_when_it_does_not_come() -> None:
    claims = {index: 2.0 for index in range(200)}
    assert _choice(NODES[0], [], 5.0, claims=claims) is None
    assert _choice(NODES[0], [], 12.5, claims=claims) is not None


def test_a_node_that_knows_few_of_many_reads_little_at_first_and_more_with_time() -> None:
    lone = {"orphaned": Orphaned(0.0, 100)}
    allowed = [
        sum(_choice(NODES[0], [], now, wanted=1 << index, **lone) is not None for index in range(200))
        for now in (1.1, 10.0, 400.0)
    ]
    assert allowed[0] < 10 < allowed[1] < 120 < allowed[2] == 200


def test_bits_are_the_set_ones() -> None:
    assert list(bits(0b1011)) == [0, 1, 3]
