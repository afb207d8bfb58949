"""Dead, silent and wrongly buried nodes; chunks that went with them."""

from __future__ import annotations

from tracker_driver import Driver, bitmap, digest, leases, node_id, of

from p2pdist.protocol import messages as wire


def rollout(count: int, chunks: int = 40, **rules) -> Driver:
    driver = Driver(**rules)
    for number in range(1, count + 1):
        driver.join(number, "blob", chunks=chunks)
    return driver


def test_one_voice_does_not_bury_a_node_two_do() -> None:
    driver = rollout(4)
    lost = {index for index, node in driver.leased("blob").items() if node == 1}
    assert lost
    driver.say(2, wire.Dead(node_id(1)))
    driver.say(2, wire.Dead(node_id(1)))
    assert {index for index, node in driver.leased("blob").items() if node == 1} == lost
    said = driver.say(3, wire.Dead(node_id(1)))
    assert lost <= {index for _, index in leases(said)}
    assert 1 not in driver.leased("blob").values()


def test_votes_that_are_half_a_minute_apart_do_not_add_up() -> None:
    driver = rollout(4, lease_timeout=1000.0)
    driver.say(2, wire.Dead(node_id(1)))
    driver.later(31.0)
    driver.say(3, wire.Dead(node_id(1)))
    assert driver.swarms.counters.deaths == 0
    driver.say(2, wire.Dead(node_id(1)))
    assert driver.swarms.counters.deaths == 1


def test_of_two_nodes_one_voice_is_enough() -> None:
    driver = rollout(2)
    driver.say(2, wire.Dead(node_id(1)))
    assert driver.swarms.counters.deaths == 1


def test_strangers_have_no_vote() -> None:
    driver = rollout(3)
    driver.join(8, "other")
    driver.join(9, "other")
    driver.say(8, wire.Dead(node_id(1)))
    driver.say(9, wire.Dead(node_id(1)))
    driver.say(1, wire.Dead(node_id(1)))
    driver.say(99, wire.Dead(node_id(1)))
    assert driver.swarms.counters.deaths == 0


def test_a_buried_node_is_nobodys_neighbour() -> None:
    driver = rollout(4)
    driver.say(2, wire.Dead(node_id(1)))
    driver.say(3, wire.Dead(node_id(1)))
    driver.join(5, "blob", chunks=40)
    (joined,) = driver.take(5, wire.Joined)
    assert {peer.node for peer in joined.peers} == {node_id(number) for number in (2, 3, 4)}
    driver.say(5, wire.More(digest("blob"), 10))
    assert node_id(1) not in {peer.node for peer in driver.take(5, wire.Neighbours)[0].peers}


def test_a_node_buried_wrongly_takes_part_again_with_its_next_progress() -> None:
    for message in (
        wire.Got(digest("blob"), 0, b"", b""),
        wire.Half(digest("blob"), 0),
        wire.Holds([digest("something")]),
    ):
        driver = rollout(4)
        driver.say(2, wire.Dead(node_id(1)))
        driver.say(3, wire.Dead(node_id(1)))
        driver.say(1, wire.Ping())
        assert node_id(1) not in {node.id for node in driver.swarm("blob").members}
        driver.say(1, message)
        assert node_id(1) in {node.id for node in driver.swarm("blob").members}
        assert driver.swarm("blob").missing & driver.swarm("blob").leased == 0


def test_a_node_buried_wrongly_can_join_again_with_what_it_has() -> None:
    driver = rollout(4)
    before = driver.leased("blob")
    driver.say(2, wire.Dead(node_id(1)))
    driver.say(3, wire.Dead(node_id(1)))
    regranted = driver.leased("blob")
    assert set(before) <= set(regranted)
    driver.join(1, "blob", chunks=40, have={"blob": (30, 31)})
    (_, joined) = driver.take(1, wire.Joined)
    assert len(joined.peers) == 3
    assert driver.swarm("blob").tally.some() >> 30 == 0b11
    while pending := driver.leased("blob"):
        index, node = min(pending.items())
        driver.got(node, "blob", index)
    assert not {30, 31} & {index for _, index in leases(driver.said)}


def test_a_buried_holder_holds_again_after_progress() -> None:
    driver = Driver()
    driver.connect(1)
    driver.say(1, wire.Holds([digest("blob")]))
    driver.join(2, "blob")
    driver.join(3, "blob")
    driver.say(2, wire.Dead(node_id(1)))
    driver.say(3, wire.Dead(node_id(1)))
    assert len(driver.swarm("blob").holders) == 0
    driver.say(1, wire.Holds([]))
    assert len(driver.swarm("blob").holders) == 1


def test_chunks_that_only_the_dead_had_are_leased_when_they_are_missed() -> None:
    driver = rollout(4)
    index, node = next(iter(driver.leased("blob").items()))
    driver.got(node, "blob", index)
    driver.disconnect(node)
    other = next(number for number in (1, 2, 3, 4) if number != node)
    assert index not in driver.leased("blob")  # others may have it already
    driver.miss(other, "blob", index)
    swarm = driver.swarm("blob")
    assert swarm.missing >> index & 1 or index in driver.leased("blob")
    while pending := driver.leased("blob"):
        first, reader = min(pending.items())
        driver.got(reader, "blob", first)
    assert [chunk for _, chunk in leases(driver.said)].count(index) == 2


def test_missing_a_chunk_that_is_to_come_changes_nothing() -> None:
    driver = rollout(4)
    (index, node), *_ = driver.leased("blob").items()
    other = next(number for number in (1, 2, 3, 4) if number != node)
    assert driver.miss(other, "blob", index, 39) == []
    assert driver.leased("blob")[index] == node


def test_who_misses_what_somebody_has_learns_from_whom() -> None:
    driver = rollout(6)
    (index, node), *_ = driver.leased("blob").items()
    driver.got(node, "blob", index)
    other = next(number for number in range(1, 7) if number != node)
    said = driver.miss(other, "blob", index)
    assert of(said, wire.Neighbours)[0][1].peers[0].node == node_id(node)
    assert leases(said) == []


def test_what_a_liar_claims_to_have_is_read_again_once_two_have_missed_it_for_long() -> None:
    driver = Driver()
    driver.join(1, "blob", have={"blob": range(8)})
    driver.join(2, "blob")
    driver.join(3, "blob")
    assert leases(driver.said) == []
    driver.miss(2, "blob", 0, 1, 2)
    driver.later(4.0)
    assert leases(driver.miss(2, "blob", 0, 1, 2)) == []  # one node's word is not enough
    said = driver.miss(3, "blob", 0, 1, 2)
    assert {index for _, index in leases(said)} <= {0, 1, 2} and leases(said)


def test_what_nobody_gets_from_the_one_who_says_that_it_read_it_is_read_again_at_once_when_most_miss_it() -> None:
    driver = rollout(12)
    (index, liar), *_ = driver.leased("blob").items()
    driver.got(liar, "blob", index)
    honest = [number for number in range(1, 13) if number != liar]
    driver.later(1.9)
    for number in honest:
        driver.miss(number, "blob", index)
    assert index not in driver.leased("blob") and not driver.swarm("blob").missing >> index & 1  # it may be on its way
    driver.later(0.2)
    driver.miss(honest[0], "blob", index)
    assert index in driver.leased("blob") or driver.swarm("blob").missing >> index & 1


def test_what_half_of_the_nodes_miss_is_on_its_way_to_them() -> None:
    driver = rollout(12)
    (index, node), *_ = driver.leased("blob").items()
    driver.got(node, "blob", index)
    for _ in range(2):
        for number in [number for number in range(1, 13) if number != node][:6]:
            driver.miss(number, "blob", index)
        driver.later(1.1)
    assert index not in driver.leased("blob") and not driver.swarm("blob").missing >> index & 1


def test_a_false_holder_does_not_stop_a_pull() -> None:
    driver = Driver()
    driver.connect(1)
    driver.say(1, wire.Holds([digest("blob")]))
    driver.join(2, "blob")
    said = driver.miss(2, "blob", 0, 1)
    assert of(said, wire.Neighbours)[0][1].peers[0].node == node_id(1)
    driver.later(3.5)
    assert leases(driver.miss(2, "blob", 0, 1))


def test_a_silent_member_that_misses_does_not_cost_reads() -> None:
    driver = rollout(5, chunks=8)
    while pending := driver.leased("blob"):
        index, node = min(pending.items())
        driver.got(node, "blob", index)
    count = len(leases(driver.said))
    for _ in range(50):
        driver.later(1.0)
        driver.miss(1, "blob", *range(8))
    assert len(leases(driver.said)) == count


def test_a_tracker_that_restarts_waits_for_what_the_others_have() -> None:
    driver = Driver(settle_window=10.0, settle=2.0)
    halves = {1: range(0, 4), 2: range(2, 6), 3: range(5, 8)}
    for number, have in halves.items():
        driver.join(number, "blob", have={"blob": have})
        driver.later(0.5)
    driver.later(20.0)
    assert of(driver.said, wire.Lease) == []  # together they have all of it


def test_a_tracker_that_restarts_leases_what_nobody_brings_back() -> None:
    driver = Driver(settle_window=10.0, settle=2.0)
    driver.join(1, "blob", have={"blob": (0, 1)})
    driver.later(0.2)
    driver.join(2, "blob", have={"blob": (2, 3)})
    driver.later(1.0)
    assert leases(driver.said) == []
    driver.later(1.0)
    for _ in range(10):
        for index, node in list(driver.leased("blob").items()):
            driver.got(node, "blob", index)
    assert sorted(index for _, index in leases(driver.said)) == [4, 5, 6, 7]


def test_a_tracker_that_restarts_learns_who_holds_what() -> None:
    driver = Driver(settle_window=10.0)
    driver.join(1, "blob", have={"blob": (0,)})
    driver.connect(2)
    driver.say(2, wire.Holds([digest("blob")]))
    assert [peer.node for peer in driver.take(1, wire.Neighbours)[0].peers] == [node_id(2)]
    driver.later(10.0)
    assert of(driver.said, wire.Lease) == []


def test_a_new_session_of_a_node_ends_its_old_one() -> None:
    driver = rollout(3)
    held = [index for index, node in driver.leased("blob").items() if node == 1]
    driver.connect(1)
    assert held and all(driver.leased("blob").get(index) != 1 for index in held)
    assert node_id(1) not in {node.id for node in driver.swarm("blob").members}


def test_a_late_returned_is_only_believed_from_a_member() -> None:
    driver = rollout(3, chunks=8)
    driver.connect(9)
    assert driver.say(9, wire.Returned(digest("blob"), bitmap(*range(8)))) == []
    assert driver.swarm("blob").tally.some() == 0
