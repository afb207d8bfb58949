"""Several nodes find the same digest wrong: one at a time reads again what others attested."""

from __future__ import annotations

from tracker_driver import CHUNK, Driver, digest, of

from p2pdist.protocol import messages as wire

DOUBTS = wire.Doubts(digest("blob"), 100 * CHUNK, CHUNK)


def doubt(driver: Driver, number: int) -> list[int]:
    return [who for who, _ in of(driver.say(number, DOUBTS), wire.Search)]


def settled(driver: Driver, number: int, *indexes: int) -> dict[int, list[int]]:
    said = driver.say(number, wire.Settled(digest("blob"), CHUNK, list(indexes)))
    return {who: message.indexes for who, message in of(said, wire.Suspects)}


def test_one_searches_and_the_others_hear_what_it_found() -> None:
    driver = Driver()
    driver.connect(1, 2, 3, 4)
    assert doubt(driver, 1) == [1]
    assert doubt(driver, 2) == doubt(driver, 3) == []
    assert settled(driver, 1, 5, 9) == {2: [5, 9], 3: [5, 9]}
    said = driver.say(4, DOUBTS)
    assert [message.indexes for _, message in of(said, wire.Suspects)] == [[5, 9]]


def test_who_is_still_wrong_with_what_was_found_searches_itself() -> None:
    driver = Driver()
    driver.connect(1, 2)
    doubt(driver, 1)
    doubt(driver, 2)
    settled(driver, 1, 5)
    assert doubt(driver, 2) == [2]


def test_what_somebody_says_who_was_not_asked_counts_nothing() -> None:
    driver = Driver()
    driver.connect(1, 2, 3)
    doubt(driver, 1)
    doubt(driver, 2)
    assert settled(driver, 3, 5) == settled(driver, 2, 5) == {}
    settled(driver, 1, 6)
    assert settled(driver, 1, 7) == {}


def test_a_searcher_that_leaves_or_takes_too_long_is_followed_by_another() -> None:
    driver = Driver()
    driver.connect(1, 2, 3)
    doubt(driver, 1)
    for number in (2, 3):
        doubt(driver, number)
    driver.disconnect(1)
    (second,) = {number for number in (2, 3) if driver.take(number, wire.Search)}
    driver.later(60.0)
    third = 5 - second
    assert driver.take(third, wire.Search)
    assert settled(driver, second, 3) == {}  # late, and heard: nobody waits any more
    assert settled(driver, third) == {}
    driver.later(60.0)
    assert len(driver.cluster.searches) == 0
