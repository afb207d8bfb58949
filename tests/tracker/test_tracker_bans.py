"""Who sends wrong bytes is shut out, once enough others on other hosts have got some."""

from __future__ import annotations

import pytest
from tracker_driver import Driver, digest, node_id, of

from p2pdist.protocol import messages as wire
from tracker.bans import host_of
from tracker.rules import BanRules


def accuse(driver: Driver, number: int, peer: int):
    return driver.say(number, wire.Accuse(node_id(peer), digest("blob"), 0))


def test_three_accusers_on_three_hosts_ban_a_node_for_everyone() -> None:
    driver = Driver()
    for number in range(1, 6):
        driver.join(number, "blob")
    assert accuse(driver, 2, 1) == accuse(driver, 3, 1) == []
    said = accuse(driver, 4, 1)
    assert sorted(number for number, _ in of(said, wire.Banned)) == [2, 3, 4, 5]
    assert of(said, wire.Rejected)[0][0] == 1
    assert node_id(1) not in driver.swarms.state.nodes
    until = driver.cluster.banned(driver.now, node_id(1))
    assert until is not None and until > driver.now
    driver.later(3601.0)
    assert driver.cluster.banned(driver.now, node_id(1)) is None


def test_many_names_on_one_host_are_one_accuser() -> None:
    driver = Driver()
    driver.connect(1)
    driver.connect(*range(2, 20), host="one-host")
    for number in range(2, 20):
        assert accuse(driver, number, 1) == []
    assert driver.cluster.bans.accusers(node_id(1)) == 18


def test_one_node_accusing_often_is_one_accuser() -> None:
    driver = Driver()
    driver.connect(1, 2)
    for _ in range(10):
        assert accuse(driver, 2, 1) == []
    driver.disconnect(2)
    driver.connect(2, host="another-host")
    accuse(driver, 2, 1)
    driver.disconnect(2)
    driver.connect(2, host="a-third-host")
    assert accuse(driver, 2, 1) == []


def test_accusations_age() -> None:
    driver = Driver(bans=BanRules(settle=0.0, window=600.0))
    driver.connect(1, 2, 3, 4)
    accuse(driver, 2, 1)
    accuse(driver, 3, 1)
    driver.later(601.0)
    assert accuse(driver, 4, 1) == []


def test_nobody_accuses_everybody() -> None:
    driver = Driver(bans=BanRules(settle=0.0, max_accused_per_node=5))
    driver.connect(*range(1, 30))
    for peer in range(2, 30):
        accuse(driver, 1, peer)
    assert sum(driver.cluster.bans.accusers(node_id(peer)) for peer in range(2, 30)) == 5


def test_newcomers_learn_who_is_banned() -> None:
    driver = Driver()
    driver.connect(1, 2, 3, 4)
    for number in (2, 3, 4):
        accuse(driver, number, 1)
    driver.connect(5)
    assert [message.node for message in driver.take(5, wire.Banned)] == [node_id(1)]


@pytest.mark.parametrize("nodes", [4, 8, 12, 30, 100, 1000])
def test_a_clique_below_the_threshold_cannot_ban_an_honest_node_and_one_at_it_can(nodes: int) -> None:
    driver = Driver()
    driver.checking = False
    driver.connect(*range(1, nodes + 1))
    least = max(3, nodes * 34 // 100 + 1)
    assert driver.cluster.bans.threshold(driver.now) == least
    for _ in range(3):  # however often they say it
        for number in range(2, least + 1):
            assert accuse(driver, number, 1) == []
    assert driver.cluster.banned(driver.now, node_id(1)) is None
    assert of(accuse(driver, least + 1, 1), wire.Rejected)[0][0] == 1
    assert driver.cluster.banned(driver.now, node_id(1)) is not None


def test_a_clique_that_waits_until_others_have_left_is_no_larger_for_it() -> None:
    driver = Driver()
    driver.connect(*range(1, 31))
    driver.disconnect(*range(5, 31))
    for number in (2, 3, 4):
        assert accuse(driver, number, 1) == []
    driver.later(601.0)  # they stay away: the cluster is small now
    for number in (2, 3, 4):
        said = accuse(driver, number, 1)
    assert of(said, wire.Rejected)


def test_a_clique_that_is_back_first_after_a_restart_of_the_tracker_bans_nobody() -> None:
    driver = Driver(bans=BanRules())
    driver.connect(1, 2, 3, 4)
    for number in (2, 3, 4):
        assert accuse(driver, number, 1) == []
    driver.connect(*range(5, 31))
    driver.later(121.0)
    assert accuse(driver, 4, 1) == []


def test_whoever_has_an_ipv6_network_is_one_host() -> None:
    assert host_of("2001:db8::1") == host_of("2001:db8::2") != host_of("2001:db8:0:1::1")
    assert host_of("::ffff:192.0.2.1") == host_of("192.0.2.1") != host_of("192.0.2.2")
    driver = Driver()
    driver.connect(1)
    for number in range(2, 20):
        driver.connect(number, host=f"2001:db8::{number}")
        assert accuse(driver, number, 1) == []
