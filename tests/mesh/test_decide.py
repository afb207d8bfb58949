"""What the mesh decides, without any IO: the rules of the design page, one by one."""

from __future__ import annotations

import random

from p2pdist.mesh.decide import Ask, Decisions
from p2pdist.mesh.knobs import Knobs

BLOB = "sha256:" + "a" * 64
NEXT = "sha256:" + "b" * 64


def decisions(have: int = 0, count: int = 64, peers: str = "", **knobs: int) -> Decisions[str]:
    decide: Decisions[str] = Decisions(random.Random(3), Knobs(**knobs), b"me")
    decide.add_blob(BLOB, count, have)
    for peer in peers:
        decide.link_up(peer)
        decide.opened(peer, BLOB, 0)
    return decide


def test_never_more_requests_out_than_allowed_in_all_and_per_neighbour() -> None:
    decide = decisions(peers="abcdefgh")
    for peer in "abcdefgh":
        decide.opened(peer, BLOB, (1 << 64) - 1)
    asks = decide.pump(0.0)
    assert len(asks) == 12
    assert all(sum(ask.peer == peer for ask in asks) <= 2 for peer in "abcdefgh")
    assert len({ask.index for ask in asks}) == 12
    assert decide.pump(0.0) == []


def test_only_chunks_that_the_peer_has_and_we_lack_are_asked_for() -> None:
    decide = decisions(have=0b0111, count=8, peers="a")
    decide.opened("a", BLOB, 0b1111)
    assert decide.pump(0.0) == [Ask("a", BLOB, 3)]


def test_chunks_come_in_order_where_every_neighbour_is_complete_and_spread_where_one_is_not() -> None:
    full = (1 << 64) - 1
    alone = decisions(peers="ab")
    together = decisions(peers="abc")
    for decide in (alone, together):
        decide.opened("a", BLOB, full)
        decide.opened("b", BLOB, full)
    assert sorted(ask.index for ask in alone.pump(0.0)) == [0, 1, 2, 3]
    assert sorted(ask.index for ask in together.pump(0.0)) != [0, 1, 2, 3]


def test_the_least_loaded_holder_is_asked() -> None:
    decide = decisions(count=1, peers="ab")
    decide.peer_has("a", BLOB, 0, load=9, active=0)
    decide.peer_has("b", BLOB, 0, load=1, active=0)
    assert decide.pump(0.0) == [Ask("b", BLOB, 0)]


def test_a_busy_peer_is_left_alone_for_a_while_and_its_chunk_is_free_again() -> None:
    decide = decisions(count=1, peers="ab")
    for peer in "ab":
        decide.opened(peer, BLOB, 1)
    (ask,) = decide.pump(0.0)
    decide.busy(ask, load=11, now=0.0)
    (second,) = decide.pump(0.0)
    assert second.peer != ask.peer
    decide.busy(second, load=11, now=0.0)
    assert decide.pump(0.01) == []
    assert len(decide.pump(0.3)) == 1


def test_earlier_layers_are_fetched_first() -> None:
    decide = decisions(count=2, peers="a", per_neighbour=9)
    decide.add_blob(NEXT, 2, 0)
    decide.opened("a", NEXT, 0b11)
    decide.opened("a", BLOB, 0b11)
    assert [ask.blob for ask in decide.pump(0.0)] == [BLOB, BLOB, NEXT, NEXT]


def test_a_chunk_under_lease_is_not_asked_of_peers_as_well() -> None:
    decide = decisions(count=1, peers="a")
    assert decide.leased(BLOB, 0)
    decide.opened("a", BLOB, 1)
    assert decide.pump(0.0) == []
    decide.unleased(BLOB, 0)
    assert decide.pump(0.0) == [Ask("a", BLOB, 0)]


def test_neighbours_that_lack_a_chunk_are_told_once_at_half_and_not_again() -> None:
    decide = decisions(peers="abc")
    decide.peer_has("b", BLOB, 5, 0, 0)
    assert decide.coming(BLOB, 5) == ["a", "c"]
    assert decide.coming(BLOB, 5) == []
    assert decide.proved(BLOB, 5)[0] == []


def test_a_neighbour_that_joins_between_half_and_whole_is_told_of_the_chunk_too() -> None:
    decide = decisions(peers="a")
    assert decide.coming(BLOB, 7) == ["a"]
    decide.link_up("b")
    decide.opened("b", BLOB, 0)
    told, _ = decide.proved(BLOB, 7)
    assert "b" in told


def test_a_proved_chunk_cancels_the_other_request_for_it() -> None:
    decide = decisions(count=1, peers="ab")
    for peer in "ab":
        decide.opened(peer, BLOB, 1)
    (first,) = decide.pump(0.0)
    (late,) = decide.late(10.0)
    assert {first.peer, late.peer} == {"a", "b"}
    decide.received(first, 0.1)
    _, cancel = decide.proved(BLOB, 0)
    assert cancel == [late]


def test_the_end_game_asks_two_peers_at_most_and_only_for_the_last_chunks() -> None:
    decide = decisions(peers="abc")
    for peer in "abc":
        decide.opened(peer, BLOB, (1 << 64) - 1)
    decide.pump(0.0)
    assert decide.late(100.0) == []
    decide = decisions(count=1, peers="abc")
    for peer in "abc":
        decide.opened(peer, BLOB, 1)
    decide.pump(0.0)
    assert len(decide.late(100.0)) == 1
    assert decide.late(100.0) == []


def test_a_request_waits_until_the_chunk_is_whole_and_no_longer() -> None:
    decide = decisions(peers="a")
    decide.coming(BLOB, 3)
    turn = decide.request("token", "a", BLOB, 3, 0, 0)
    assert (turn.serve, turn.refuse) == ([], [])
    decide.proved(BLOB, 3)
    assert [waiter.token for waiter in decide.turn().serve] == ["token"]


def test_a_chunk_that_is_not_even_half_here_is_refused_at_once() -> None:
    decide = decisions(peers="a")
    assert [waiter.token for waiter in decide.request("token", "a", BLOB, 3, 0, 0).absent] == ["token"]


def test_whoever_waits_for_a_chunk_whose_source_died_half_way_is_told_that_it_does_not_come() -> None:
    decide = decisions(peers="ab")
    decide.peer_has("a", BLOB, 3, 0, 0)
    (ask,) = decide.pump(0.0)
    decide.coming(BLOB, 3)
    assert decide.request("token", "b", BLOB, 3, 0, 0).absent == []  # it waits
    decide.failed(ask, 0.0, hold=0.0)
    assert [waiter.token for waiter in decide.turn().absent] == ["token"]
    told, _ = decide.proved(BLOB, 3)
    assert "b" in told, "and hears of it again once it is here"


def test_a_peer_that_says_a_chunk_is_not_there_is_not_asked_for_it_again() -> None:
    decide = decisions(peers="a")
    decide.peer_has("a", BLOB, 3, 0, 0)
    (ask,) = decide.pump(0.0)
    decide.absent(ask, 0, 0.0)
    assert decide.pump(10.0) == []
    assert decide.missing(10.0) == {}
    assert 3 in decide.missing(12.0)[BLOB]


def test_of_too_many_waiters_the_busiest_is_refused() -> None:
    decide = decisions(have=1, peers="abcdefghijklm")
    tokens = [decide.request(peer, peer, BLOB, 0, 0, active) for active, peer in enumerate("abcdefghijklm")]
    assert sum(len(turn.serve) for turn in tokens) == 8
    refused = [waiter.token for turn in tokens for waiter in turn.refuse]
    assert refused == ["l", "m"]


def test_the_waiter_with_fewest_downloads_is_served_first() -> None:
    decide = decisions(have=1, peers="abc", uploads=1)
    assert decide.request("a", "a", BLOB, 0, 0, 5).serve
    decide.request("b", "b", BLOB, 0, 0, 4)
    decide.request("c", "c", BLOB, 0, 0, 1)
    assert [waiter.token for waiter in decide.uploaded().serve] == ["c"]


def test_a_chunk_that_few_neighbours_have_goes_first_and_is_not_refused() -> None:
    decide = decisions(have=0b11, peers="abcdefgh", uploads=1)
    for peer in "defgh":
        decide.opened(peer, BLOB, 0b01)
    assert decide.request("first", "a", BLOB, 0, 0, 0).serve
    for peer in "abc":
        decide.request("old", peer, BLOB, 0, 0, 0)
    assert [waiter.token for waiter in decide.request("fresh", "d", BLOB, 1, 60, 11).refuse] == ["old"]
    assert [waiter.token for waiter in decide.uploaded().serve] == ["fresh"]


def test_a_transfer_that_brings_nothing_is_given_up_and_one_that_moves_is_not() -> None:
    decide = decisions(count=2, peers="ab")
    for peer in "ab":
        decide.opened(peer, BLOB, 0b11)
    asks = decide.pump(0.0)
    decide.progress(asks[0].peer, BLOB, asks[0].index, 2.9)
    assert decide.stalled(3.1) == [asks[1]]


def test_what_nobody_near_has_is_missed_only_when_nothing_is_on_its_way() -> None:
    decide = decisions(count=4, peers="a")
    decide.opened("a", BLOB, 0b0001)
    decide.pump(0.0)
    assert decide.missing(5.0) == {}
    decide.failed(Ask("a", BLOB, 0), 5.0, hold=1.0)
    assert decide.missing(5.0) == {}
    assert decide.missing(6.1) == {BLOB: [1, 2, 3]}
    assert decide.missing(6.2) == {}


def test_without_a_tracker_only_one_of_many_reads_a_chunk_at_first() -> None:
    nodes = [bytes([i]) * 32 for i in range(12)]
    readers: dict[int, int] = {}
    for me in nodes:
        decide: Decisions[bytes] = Decisions(random.Random(1), Knobs(), me)
        decide.add_blob(BLOB, 40, 0)
        for other in nodes:
            if other != me:
                decide.link_up(other)
                decide.opened(other, BLOB, 0)
        own = decide.self_lease(11.5, 10.0, len(nodes))
        if own is not None:
            readers[own[1]] = readers.get(own[1], 0) + 1
    assert readers
    assert max(readers.values()) == 1


def test_without_a_tracker_few_nodes_read_two_chunks_at_once_and_many_one_each() -> None:
    few, many = decisions(), decisions()
    for decide, nodes, most in ((few, 12, 2), (many, 13, 1)):
        began = []
        while (own := decide.self_lease(60.0, 10.0, nodes)) is not None:
            assert decide.leased(*own)
            began.append(own[1])
        assert len(set(began)) == len(began) == most


def test_without_a_tracker_a_node_waits_for_what_others_say_they_are_reading() -> None:
    decide = decisions(count=1)
    assert decide.self_lease(10.29, 10.0, 1) is None
    assert decide.self_lease(10.31, 10.0, 1) == (BLOB, 0)


def test_a_claimed_chunk_is_left_to_the_claimer() -> None:
    decide = decisions(count=1)
    decide.claimed(BLOB, 0, 11.0)
    assert decide.self_lease(12.0, 10.0, 1) is None
    assert decide.self_lease(40.0, 10.0, 1) == (BLOB, 0)


def test_a_claim_is_news_once_and_nobody_can_keep_a_chunk_by_claiming_it() -> None:
    decide = decisions(count=2)
    assert decide.claimed(BLOB, 0, 11.0)
    assert not decide.claimed(BLOB, 0, 11.1), "passed on once, or it goes round for ever"
    assert decide.claimed(BLOB, 0, 30.0)
    assert not decide.claimed(BLOB, 0, 50.0)
    decide.leased(BLOB, 1)
    assert not decide.claimed(BLOB, 1, 50.0), "this node's own claim, come back"
    decide.unleased(BLOB, 1)
    decide.proved(BLOB, 1)
    assert decide.self_lease(51.0, 10.0, 1) == (BLOB, 0)


def test_a_lost_link_frees_what_was_asked_there() -> None:
    decide = decisions(count=1, peers="ab")
    decide.opened("a", BLOB, 1)
    (ask,) = decide.pump(0.0)
    assert decide.link_down("a") == [ask]
    decide.failed(ask, 0.0, hold=0.0)
    decide.opened("b", BLOB, 1)
    assert decide.pump(0.0) == [Ask("b", BLOB, 0)]
