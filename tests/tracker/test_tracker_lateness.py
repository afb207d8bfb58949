"""Leases that are sat on cost little time, and an upstream that is slow for all costs no second read."""

from __future__ import annotations

import pytest
from tracker_driver import Driver, digest, leases
from tracker_upstream import Rollout

from p2pdist.protocol import messages as wire
from tracker.reads import MOST, Reads

CHUNKS = 192  # 6 s at the usual 32 a second
SEEDS = range(1, 4)
MIXED = {1: "silent", 2: "drips", 3: "lies"}


def quarter(nodes: int, kind: str) -> dict[int, str]:
    """They were waiting for the rollout: they join first."""
    return dict.fromkeys(range(1, nodes // 4 + 1), kind)


# --- a quarter of the nodes means harm ---


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [4, 8, 12])
@pytest.mark.parametrize("kind", ["silent", "drips"])
def test_a_quarter_that_sits_on_its_leases_costs_less_than_the_clean_time(kind: str, nodes: int, seed: int) -> None:
    rollout = Rollout(nodes, CHUNKS, quarter(nodes, kind), seed=seed)
    assert rollout.run() <= 1.3 * CHUNKS / 32
    assert rollout.copies == 1.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wait", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("kinds", [MIXED, {1: "lies", 2: "silent", 3: "silent"}, {1: "lies", 2: "lies", 3: "drips"}])
def test_all_kinds_together_cost_less_than_the_clean_time(kinds: dict[int, str], wait: float, seed: int) -> None:
    rollout = Rollout(12, CHUNKS, kinds, wait=wait, seed=seed)
    took = rollout.run() - wait
    again = len(rollout.lies) / 32  # what was lied about is read again at the end
    assert took + again <= 1.4 * CHUNKS / 32
    assert rollout.copies == 1.0


def test_of_a_hundred_too_although_they_were_there_first() -> None:
    rollout = Rollout(100, 512, quarter(100, "silent"))
    assert rollout.run() <= 1.4 * 512 / 32
    assert rollout.copies == 1.0


def test_who_was_there_first_holds_up_nobody_for_long_when_nothing_has_come_yet() -> None:
    rollout = Rollout(12, 12, quarter(12, "silent"))
    assert rollout.run() <= 3.5  # a second until more nodes are asked, and two until what they sit on is given away


def test_who_answers_at_once_is_not_given_all_that_others_have_no_hands_for() -> None:
    rollout = Rollout(4, 400, {1: "lies"}, slow={2: 1.0, 3: 1.0, 4: 1.0})
    rollout.run()
    assert len(rollout.lies) <= 0.8 * 400


# --- an upstream that is slow for all ---


@pytest.mark.parametrize("kinds", [{}, {1: "lies"}, {1: "silent", 2: "silent", 3: "silent"}])
@pytest.mark.parametrize(
    ("what", "chunks"),
    [
        ({"rate": 0.3, "first": 5.0}, 60),  # 20 KB/s for all of them together
        ({"first": 5.0}, CHUNKS),
        ({"first": 12.0}, 64),
        ({"rate": 8.0}, CHUNKS),
        ({"stall": (2.0, 7.0)}, CHUNKS),
        ({"stall": (2.0, 17.0)}, CHUNKS),
    ],
)
def test_a_slow_upstream_is_not_read_twice(what: dict, chunks: int, kinds: dict[int, str]) -> None:
    rollout = Rollout(12, chunks, kinds, **what)
    rollout.run()
    assert rollout.copies <= 1.05


@pytest.mark.parametrize("slow", [0.3, 1.0, 3.0])
def test_slow_nodes_cost_a_chunk_or_two_and_no_time(slow: float) -> None:
    rollout = Rollout(12, CHUNKS, slow={1: slow, 2: slow, 3: slow})
    assert rollout.run() <= 1.3 * CHUNKS / 32
    assert rollout.copies <= 1.05


def test_before_anything_has_come_more_nodes_are_asked_each_for_a_chunk_of_its_own() -> None:
    driver = Driver()
    for number in range(1, 41):
        driver.join(number, "blob", chunks=200)
    seen = []
    for _ in range(10):
        driver.later(0.99)
        seen.append(len(driver.leased("blob")))
    assert seen == [2, 6, 14, 22, 30, 30, 30, 30, 30, 30]
    said = leases(driver.said)
    assert len({index for _, index in said}) == len(said)


def test_a_slow_upstream_is_not_asked_for_more_and_more_at_once() -> None:
    rollout = Rollout(100, 300, first=5.0)
    most = 0
    for second in range(1, 60):
        rollout.run(until=float(second))
        most = max(most, len(rollout.driver.leased("blob")))
    assert most <= 8 + 4 * 8


def test_where_all_stand_still_at_once_nothing_is_read_twice_for_long() -> None:
    driver, _ = started()
    for _ in range(20):  # what is usual is short, and known
        index, node = min(driver.leased("blob").items())
        driver.later(0.1)
        driver.got(node, "blob", index)
    for _ in range(30):
        driver.later(1.0)
    said = [index for _, index in leases(driver.said)]
    assert len(set(said)) == len(said)


def test_halves_that_come_late_are_no_reason_to_ask_a_slow_upstream_for_more() -> None:
    driver = Driver()
    for number in range(1, 81):
        driver.join(number, "blob", chunks=5000)
    most = 0
    for _ in range(12):  # all that comes takes more than two seconds
        for _ in range(25):
            driver.later(0.1)
        index, node = min(driver.leased("blob").items())
        driver.half(node, "blob", index)
        most = max(most, len(driver.leased("blob")))
    assert most <= 8 + 4 * 8


# --- the node ---


def late(driver: Driver, sitting: int, seconds: float) -> None:
    """So much time goes by; everybody else reads what it was given."""
    for _ in range(round(seconds / 0.1)):
        driver.later(0.1)
        for index, node in list(driver.leased("blob").items()):
            if node != sitting:
                driver.got(node, "blob", index)


def started() -> tuple[Driver, int]:
    """A rollout of four nodes, and a chunk that node 1 is to read."""
    driver = Driver()
    for number in range(1, 5):
        driver.join(number, "blob", chunks=5000)
    while 1 not in driver.leased("blob").values():
        index, node = min(driver.leased("blob").items())
        driver.got(node, "blob", index)
    return driver, next(index for index, node in driver.leased("blob").items() if node == 1)


def test_a_node_that_sits_on_its_leases_gets_one_at_a_time_less_and_less_often() -> None:
    driver, _ = started()
    late(driver, 1, 2.5)
    before = sum(node == 1 for node, _ in leases(driver.said))
    given = []
    for _ in range(4):
        late(driver, 1, 45.0)
        given.append(sum(node == 1 for node, _ in leases(driver.said)) - before)
        assert sum(node == 1 for node in driver.leased("blob").values()) <= 1
    assert given[-1] <= 5


@pytest.mark.parametrize("message", [wire.Ping(), wire.Holds([digest("x")]), wire.Half(digest("blob"), 4999)])
def test_other_words_than_of_what_it_was_to_read_give_it_no_leases(message: wire.FromAgent) -> None:
    driver, _ = started()
    late(driver, 1, 2.5)
    assert 1 not in driver.leased("blob").values()
    before = len(driver.said)
    for _ in range(5):
        driver.say(1, message)
        late(driver, 1, 1.0)
    assert 1 not in {node for node, _ in leases(driver.said[before:])}


def test_a_node_that_brings_late_what_it_was_to_read_is_only_slow() -> None:
    driver, index = started()
    late(driver, 1, 2.5)
    assert 1 not in driver.leased("blob").values()
    driver.got(1, "blob", index)  # after 2.5 s: it pauses for 10 s
    before = len(driver.said)
    late(driver, 1, 9.0)
    assert 1 not in {node for node, _ in leases(driver.said[before:])}
    late(driver, 1, 1.5)
    mine = {chunk: node for chunk, node in driver.leased("blob").items() if node == 1}
    assert len(mine) == 1  # one at a time
    late(driver, 1, 2.5)
    assert mine.items() <= driver.leased("blob").items()  # and it has the time that it takes
    for _ in range(2):
        driver.got(1, "blob", next(index for index, node in driver.leased("blob").items() if node == 1))
        late(driver, 1, 0.5)
    assert sum(node == 1 for node in driver.leased("blob").values()) == 2


def test_who_misses_what_another_is_reading_does_not_get_it_read_twice() -> None:
    driver, index = started()
    driver.later(5.0)
    for number in (2, 3, 4):
        driver.miss(number, "blob", index)
    assert driver.leased("blob")[index] == 1


# --- what is usual ---


def test_a_few_nodes_do_not_move_what_is_usual_however_often_they_say_it() -> None:
    reads = Reads()
    for node in range(7):
        reads.began(0.0, node, node)
        reads.came(2.0, node, node, 2.0)
    for turn in range(100):
        for node in ("fast", "slow", "silent"):
            reads.began(3.0 + turn, node, (node, turn))
        reads.came(3.0 + turn, "fast", ("fast", turn), 0.001)
        reads.came(3.0 + turn, "slow", ("slow", turn), 900.0)
    assert reads.usual(200.0, 5.0, 5.0) == 2.0


def test_what_has_not_come_counts_with_its_age_up_to_a_bound() -> None:
    reads = Reads()
    for node in range(3):
        reads.began(0.0, node, node)
    assert reads.usual(0.0, 5.0, 5.0) == 5.0  # nothing is known
    reads.came(0.1, 0, 0, 0.1)
    assert reads.usual(0.1, 5.0, 5.0) == 5.0  # of one
    reads.came(0.2, 1, 1, 0.2)
    assert reads.usual(0.2, 5.0, 5.0) == 0.2
    for node in range(2):
        reads.began(1.0, node, "another")
    assert reads.usual(1.1, 5.0, 5.0) == 0.2
    assert reads.usual(4.0, 5.0, 5.0) == 3.0
    assert reads.usual(40.0, 5.0, 5.0) == 5.0
    assert reads.usual(40.0, 5.0, 60.0) == 39.0


def test_only_the_latest_readers_are_remembered() -> None:
    reads = Reads()
    for node in range(10 * MOST):
        reads.began(0.0, node, node)
        reads.came(1.0, node, node, 1.0)
    assert reads.others(0.5, None) == MOST
    reads.came(2.0, 0, 0, 50.0)  # forgotten: it counts no more
    assert reads.others(1.5, None) == 0
