"""What the upstream refuses, delays or fails to give."""

from __future__ import annotations

import random

import pytest
from tracker_driver import REGISTRY, Driver, digest, leases, of

from p2pdist.protocol import messages as wire


def rollout(count: int, chunks: int = 8, **rules) -> Driver:
    driver = Driver(**rules)
    for number in range(1, count + 1):
        driver.join(number, "blob", chunks=chunks)
    return driver


def refuse(driver: Driver, node: int | None = None, status: int = 404):
    """The node's first lease (or the first of all) is refused by the upstream."""
    index, holder = next(item for item in driver.leased("blob").items() if node is None or item[1] == node)
    return holder, driver.failed(holder, "blob", index, status, final=True)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_gone_needs_two(status: int) -> None:
    driver = rollout(5)
    assert driver.leased("blob") == {0: 1, 1: 1}
    said = driver.failed(1, "blob", 0, status, final=True)
    assert of(said, wire.Gone) == []
    assert driver.leased("blob")[0] != 1  # another one tries
    said = driver.failed(driver.leased("blob")[0], "blob", 0, status, final=True)
    assert sorted(number for number, message in of(said, wire.Gone)) == [1, 2, 3, 4, 5]
    assert {message.status for _, message in of(said, wire.Gone)} == {status}
    assert driver.swarms.state.swarms == {} and driver.swarms.state.registries == {}


def test_the_only_member_is_believed() -> None:
    driver = rollout(1)
    _, said = refuse(driver)
    assert of(said, wire.Gone) == [(1, wire.Gone(digest("blob"), 404))]


def test_the_only_member_is_believed_while_streaming() -> None:
    driver = rollout(1, alone_after=0.0)
    said = driver.failed(1, "blob", 0, 404, final=True)
    assert of(said, wire.Gone) == [(1, wire.Gone(digest("blob"), 404))]


def test_one_node_cannot_call_a_blob_gone_by_saying_it_twice() -> None:
    driver = rollout(3)
    liar, _ = refuse(driver)
    for index, node in list(driver.leased("blob").items()):
        if node == liar:
            assert of(driver.failed(liar, "blob", index, 404, final=True), wire.Gone) == []
    driver.join(liar, "blob")
    assert liar not in driver.leased("blob").values()


def test_only_who_read_it_can_say_that_it_is_gone() -> None:
    driver = rollout(4, chunks=40)
    idle = [node for node in (1, 2, 3, 4) if node not in driver.leased("blob").values()]
    for node in idle:
        assert driver.failed(node, "blob", 0, 404, final=True) == []
    assert len(idle) >= 2 and of(driver.said, wire.Gone) == []


def test_a_node_that_was_refused_reads_no_more_while_others_can() -> None:
    driver = rollout(3, chunks=40)
    denied, _ = refuse(driver, status=403)
    before = len(driver.said)
    while pending := {index: node for index, node in driver.leased("blob").items() if node != denied}:
        index, node = min(pending.items())
        driver.got(node, "blob", index)
    assert denied not in {node for node, _ in leases(driver.said[before:])}
    assert of(driver.said, wire.Gone) == []


def test_refusals_with_successes_between_them_do_not_add_up() -> None:
    driver = rollout(4, chunks=40)
    first, _ = refuse(driver, status=403)
    index, node = next(item for item in driver.leased("blob").items() if item[1] != first)
    driver.got(node, "blob", index)
    other = next(holder for holder in driver.leased("blob").values() if holder not in (first, node))
    _, said = refuse(driver, other, status=403)
    assert of(said, wire.Gone) == []


def test_when_everybody_is_refused_the_blob_is_gone() -> None:
    driver = rollout(2)
    first, _ = refuse(driver, status=0)
    assert of(driver.said, wire.Gone) == []
    driver.later(5.0)
    refuse(driver, 3 - first, status=0)
    assert len(of(driver.said, wire.Gone)) == 2


def test_who_failed_at_a_chunk_is_not_the_next_to_read_it() -> None:
    rng = random.Random(1)
    for seed in range(20):
        driver = Driver(seed=seed, retry_after_failure=0.01)
        for number in (1, 2, 3):
            driver.join(number, "blob", chunks=12)
        failed: dict[int, int] = {}
        seen = 0
        while driver.leased("blob") or driver.swarm("blob").missing:
            for node, index in leases(driver.said[seen:]):
                assert failed.get(index) != node
            seen = len(driver.said)
            for index, node in list(driver.leased("blob").items()):
                if rng.random() < 0.3:
                    failed[index] = node
                    driver.failed(node, "blob", index, 500)
                elif rng.random() < 0.5:
                    driver.got(node, "blob", index)
            driver.later(0.2)
        assert failed


def test_a_failed_chunk_goes_to_another_node_after_a_pause() -> None:
    driver = rollout(3)
    index, node = next(iter(driver.leased("blob").items()))
    driver.failed(node, "blob", index, 500)
    assert index not in driver.leased("blob")
    driver.later(0.3)
    for other, holder in list(driver.leased("blob").items()):
        if other != index:
            driver.got(holder, "blob", other)
    assert driver.leased("blob").get(index, node) != node or not driver.swarm("blob").missing >> index & 1


def test_an_upstream_that_fails_every_read_is_asked_less_and_less() -> None:
    driver = rollout(4, chunks=100)
    asked = []
    end = driver.now + 120.0
    while driver.now < end:
        for index, node in list(driver.leased("blob").items()):
            asked.append(driver.now)
            driver.failed(node, "blob", index, 503)
        driver.later(0.05)
    minutes = [sum(1 for when in asked if end - 120 + 30 * part <= when < end - 90 + 30 * part) for part in range(4)]
    assert minutes[3] <= 12
    assert minutes[0] < 60


def test_an_upstream_that_recovers_is_used_at_once() -> None:
    driver = rollout(4, chunks=100)
    for _ in range(10):
        for index, node in list(driver.leased("blob").items()):
            driver.failed(node, "blob", index, 503)
        driver.later(9.0)
    for _ in range(30):
        for index, node in list(driver.leased("blob").items()):
            driver.got(node, "blob", index)
        driver.later(0.01)
    assert driver.swarm("blob").tally.some().bit_count() >= 60


def test_a_node_whose_reads_fail_does_not_hold_up_those_whose_work() -> None:
    driver = rollout(5, chunks=200)
    bad = 1
    for _ in range(60):
        for index, node in list(driver.leased("blob").items()):
            if node == bad:
                driver.failed(node, "blob", index, 0)
            else:
                driver.got(node, "blob", index)
        driver.later(0.05)
    assert driver.swarm("blob").tally.some() == driver.swarm("blob").full
    assert sum(1 for node, _ in leases(driver.said) if node == bad) <= 25


def test_a_throttled_registry_is_left_in_peace_and_everyone_is_told() -> None:
    driver = rollout(4, chunks=40)
    driver.join(9, "elsewhere", registry="other.example")
    index, node = next(iter(driver.leased("blob").items()))
    said = driver.failed(node, "blob", index, 429, retry_after=5.0)
    assert sorted(number for number, _ in of(said, wire.Throttle)) == [1, 2, 3, 4]
    assert {(message.registry, message.seconds) for _, message in of(said, wire.Throttle)} == {(REGISTRY, 5.0)}
    before = len(driver.said)
    driver.later(4.9)
    for chunk, holder in list(driver.leased("blob").items()):
        driver.got(holder, "blob", chunk)
    assert leases(driver.said[before:]) == []
    driver.later(0.2)
    assert leases(driver.said[before:])


def test_a_pause_that_is_known_is_not_told_again() -> None:
    driver = rollout(4, chunks=40)
    (first, one), (second, other), *_ = driver.leased("blob").items()
    assert of(driver.failed(one, "blob", first, 429, retry_after=5.0), wire.Throttle)
    assert not of(driver.failed(other, "blob", second, 429, retry_after=5.0), wire.Throttle)


def test_who_joins_during_a_pause_is_told() -> None:
    driver = rollout(2, chunks=40)
    index, node = next(iter(driver.leased("blob").items()))
    driver.failed(node, "blob", index, 429, retry_after=5.0)
    driver.later(2.0)
    driver.join(3, "blob", chunks=40)
    (throttle,) = driver.take(3, wire.Throttle)
    assert 2.9 < throttle.seconds <= 3.0


def test_a_pause_has_a_longest() -> None:
    driver = rollout(2, chunks=40, throttle_most=60.0)
    index, node = next(iter(driver.leased("blob").items()))
    driver.failed(node, "blob", index, 429, retry_after=1e9)
    driver.later(61.0)
    assert driver.leased("blob")


def test_after_a_pause_the_credits_start_small_again() -> None:
    driver = rollout(12, chunks=400)
    for _ in range(20):
        index, node = next(iter(driver.leased("blob").items()))
        driver.got(node, "blob", index)
    window = driver.swarm("blob").rollout.window
    index, node = next(iter(driver.leased("blob").items()))
    driver.failed(node, "blob", index, 429, retry_after=1.0)
    assert window == 8 and driver.swarm("blob").rollout.window <= 3


def test_a_lone_stream_waits_for_the_end_of_a_pause() -> None:
    driver = rollout(1, alone_after=0.0)
    driver.failed(1, "blob", 2, 429, retry_after=3.0)
    assert len(of(driver.said, wire.Lease)) == 1
    driver.later(2.9)
    assert len(of(driver.said, wire.Lease)) == 1
    driver.later(0.2)
    assert len(of(driver.said, wire.Lease)) == 2


def test_only_those_of_the_same_upstream_are_told_that_it_is_gone() -> None:
    driver = rollout(3)
    driver.join(4, "blob", registry="mirror.example")
    first, _ = refuse(driver)
    said = []
    while not of(said, wire.Gone):
        index, node = next(item for item in driver.leased("blob").items() if item[1] != first)
        said = driver.failed(node, "blob", index, 404, final=True) if node != 4 else driver.got(4, "blob", index)
    assert sorted(number for number, _ in of(said, wire.Gone)) == [1, 2, 3]
    assert [node for node in driver.swarm("blob").members] and len(driver.swarm("blob").members) == 1
