"""Whom a node is told about."""

from __future__ import annotations

from tracker_driver import Driver, digest, node_id

from p2pdist.protocol import messages as wire


def joined(driver: Driver, number: int, *blobs: str, **options) -> wire.Joined:
    driver.join(number, *blobs, **options)
    return driver.take(number, wire.Joined)[-1]


def test_a_small_rollout_knows_itself_whole() -> None:
    driver = Driver()
    for number in range(1, 15):
        answer = joined(driver, number, "blob")
        assert {peer.node for peer in answer.peers} == {node_id(other) for other in range(1, number)}


def test_in_a_large_rollout_half_of_the_degree_goes_out() -> None:
    driver = Driver()
    driver.checking = False
    degree = dict.fromkeys(range(1, 201), 0)
    for number in range(1, 201):
        answer = joined(driver, number, "blob")
        names = [peer.node for peer in answer.peers]
        assert len(set(names)) == len(names) and node_id(number) not in names
        assert len(names) == min(number - 1, 20) if number <= 20 else len(names) == 10
        degree[number] += len(names)
        for name in names:
            degree[int.from_bytes(name, "big")] += 1
    assert 18 <= sum(degree.values()) / 200 <= 22
    assert min(degree.values()) >= 10


def test_neighbours_come_from_all_layers() -> None:
    driver = Driver()
    driver.checking = False
    for number in range(1, 101):
        driver.join(number, "base", rollout="image-a")
    driver.join(500, "app", rollout="image-b")
    answer = joined(driver, 600, "base", "app", rollout="image-b")
    assert node_id(500) in {peer.node for peer in answer.peers}
    assert len(answer.peers) == 10


def test_holders_are_neighbours_too() -> None:
    driver = Driver()
    driver.checking = False
    for number in range(1, 51):
        driver.connect(number)
        driver.say(number, wire.Holds([digest("blob")]))
    for number in range(51, 54):
        driver.join(number, "blob")
    answer = joined(driver, 99, "blob")
    assert sum(int.from_bytes(peer.node, "big") <= 50 for peer in answer.peers) >= 7
    assert answer.swarms[0].holders == 50 and answer.swarms[0].members == 4


def test_more_gives_others_up_to_the_count() -> None:
    driver = Driver()
    driver.checking = False
    for number in range(1, 101):
        driver.join(number, "blob")
    driver.say(1, wire.More(digest("blob"), 7))
    (answer,) = driver.take(1, wire.Neighbours)
    assert len({peer.node for peer in answer.peers}) == 7 and node_id(1) not in {peer.node for peer in answer.peers}
    assert driver.say(1, wire.More(digest("nothing"), 7)) == []


def test_those_who_left_are_not_given() -> None:
    driver = Driver()
    for number in range(1, 6):
        driver.join(number, "blob")
    driver.disconnect(1)
    driver.say(2, wire.Leave(digest("blob")))
    driver.say(3, wire.Done(digest("blob")))
    driver.say(3, wire.Drops([digest("blob")]))
    answer = joined(driver, 9, "blob")
    assert {peer.node for peer in answer.peers} == {node_id(4), node_id(5)}


def test_swarms_are_answered_in_the_order_of_the_wants() -> None:
    driver = Driver()
    joined(driver, 1, "c")
    answer = joined(driver, 2, "a", "b", "c", "a")
    assert [swarm.digest for swarm in answer.swarms] == [digest(name) for name in "abc"]
    assert [swarm.members for swarm in answer.swarms] == [1, 1, 2]
