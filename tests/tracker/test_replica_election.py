"""Who leads with no State to ask: every survivor comes to the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.replicas.election import Memory, outranks, replica_id, same_keys
from tracker.replicas.wire import Replica
from tracker.state import StateSettings


def test_ids_tell_whether_replicas_have_the_same_keys() -> None:
    assert same_keys(replica_id(b"a", b"b"), replica_id(b"a", b"b"))
    assert not same_keys(replica_id(b"a", b"b"), replica_id(b"a", b"c"))
    assert replica_id(b"a") != replica_id(b"a")


@given(st.tuples(st.integers(0, 3), st.sampled_from("abc")), st.tuples(st.integers(0, 3), st.sampled_from("abc")))
def test_of_two_leaders_exactly_one_goes_on(one: tuple[int, str], other: tuple[int, str]) -> None:
    if one != other:
        assert outranks(*one, *other) != outranks(*other, *one)


def test_the_later_term_goes_on_and_the_lower_id_where_they_are_the_same() -> None:
    assert outranks(2, "z", 1, "a") and not outranks(1, "a", 2, "z")
    assert outranks(1, "a", 1, "z") and not outranks(1, "z", 1, "a")


@pytest.mark.parametrize(
    ("host", "address", "reached_at"),
    [
        ("127.0.0.1", "", "127.0.0.1:7070"),
        ("::1", "", "[::1]:7070"),
        ("0.0.0.0", "10.0.0.7", "10.0.0.7:7070"),
        ("0.0.0.0", "tracker-0.tracker:7171", "tracker-0.tracker:7171"),
        ("::", "fd00::7", "[fd00::7]:7070"),
        ("::", "[fd00::7]:7171", "[fd00::7]:7171"),
    ],
)
def test_where_a_replica_is_reached(host: str, address: str, reached_at: str) -> None:
    assert StateSettings(address=address).reached_at(host, 7070) == reached_at


def memory(me: str, leader: str, *ids: str) -> Memory:
    found = Memory(me, f"at-{me}")
    found.hear(Replica(leader, f"at-{leader}"), 5, [Replica(one, f"at-{one}") for one in ids])
    return found


@given(st.sets(st.sampled_from("bcdefgh"), min_size=1), st.data())
def test_survivors_agree_on_the_lowest_that_answers(survivors: set[str], data: st.DataObject) -> None:
    """`a` led and is gone. Whoever finds that somebody below it answers, waits for that one."""
    dead = data.draw(st.sets(st.sampled_from("bcdefgh")))
    alive = survivors - dead or survivors
    leads = [
        me
        for me in alive
        if not any(waits and address[3:] in alive for address, waits in memory(me, "a", *"abcdefgh").candidates())
    ]
    assert leads == [min(alive)]


def test_who_says_that_it_leads_is_asked_first_then_the_last_leader_and_never_oneself() -> None:
    found = memory("c", "d", "a", "b", "c", "d", "e")
    assert found.candidates() == [("at-d", False), ("at-a", True), ("at-b", True)]
    found.hint = "at-e"
    assert found.candidates()[0] == ("at-e", False)
    found.hear(Replica("e", "at-e"), 6)
    assert found.candidates() == [("at-e", False), ("at-a", True), ("at-b", True)]
    assert found.term == 6


def test_replicas_that_left_are_not_asked() -> None:
    found = memory("c", "a", "a", "b", "c")
    found.hear(Replica("a", "at-a"), 5, [Replica("a", "at-a"), Replica("c", "at-c")])
    assert found.candidates() == [("at-a", False)]
