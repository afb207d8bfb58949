"""Each chunk is read from upstream by one node, and the credits keep the upstream busy."""

from __future__ import annotations

from tracker_driver import CHUNK, REGISTRY, Driver, bitmap, digest, leases, node_id, of

from p2pdist.protocol import messages as wire


def run_dry(driver: Driver, blob: str) -> list[tuple[int, int]]:
    """Every leased chunk arrives, until nothing is leased; who read what."""
    read = []
    while pending := driver.leased(blob):
        index, node = min(pending.items())
        driver.half(node, blob, index)
        driver.got(node, blob, index)
        read.append((node, index))
    return read


def test_every_chunk_is_leased_once_and_in_order() -> None:
    driver = Driver()
    for number in range(1, 6):
        driver.join(number, "blob", chunks=40)
    read = run_dry(driver, "blob")
    assert [index for _, index in read] == list(range(40))
    assert [index for _, index in leases(driver.said)] == list(range(40))


def test_nodes_take_turns() -> None:
    driver = Driver()
    for number in range(1, 6):
        driver.join(number, "blob", chunks=100)
    counts = [0] * 6
    for node, _ in run_dry(driver, "blob"):
        counts[node] += 1
    assert max(counts[1:]) - min(counts[1:]) <= 2


def test_credits_grow_from_two_to_eight_with_each_that_comes_back() -> None:
    driver = Driver()
    for number in range(1, 21):
        driver.join(number, "blob", chunks=400)
    rollout = driver.swarm("blob").rollout
    seen = [rollout.credits_out]
    for _ in range(8):
        index, node = min(item for item in driver.leased("blob").items() if driver.swarm("blob").leases[item[0]].credit)
        driver.half(node, "blob", index)
        seen.append(rollout.credits_out)
    assert seen == [2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_the_credit_comes_back_at_half_and_only_once() -> None:
    driver = Driver()
    driver.join(1, "blob", chunks=100)
    driver.join(2, "blob", chunks=100)
    (index, node), *_ = driver.leased("blob").items()
    before = len(driver.leased("blob"))
    assert len(leases(driver.half(node, "blob", index))) == 2  # the credit and the one it grew by
    assert driver.half(node, "blob", index) == []
    assert len(driver.leased("blob")) == before + 2


def test_a_node_has_two_leases_at_most_until_a_chunk_is_whole() -> None:
    driver = Driver()
    driver.join(1, "blob", chunks=100)
    driver.join(2, "blob", chunks=100)
    for index, node in list(driver.leased("blob").items()):
        driver.half(node, "blob", index)
    for index, node in list(driver.leased("blob").items()):
        driver.half(node, "blob", index)
    assert sorted(driver.leased("blob").values()) == [1, 1, 2, 2]
    index = next(index for index, node in driver.leased("blob").items() if node == 2)
    assert leases(driver.got(2, "blob", index)) == [(2, 4)]


def test_earlier_layers_are_leased_first_and_share_the_credits() -> None:
    driver = Driver()
    for number in range(1, 10):
        driver.join(number, "layer-1", "layer-2", "layer-3", chunks=6, rollout="image")
    order = []
    while True:
        pending = [(layer, index) for layer in ("layer-1", "layer-2", "layer-3") for index in driver.leased(layer)]
        assert driver.swarm("layer-3").rollout.credits_out <= 8
        if not pending:
            break
        layer, index = pending[0]
        driver.got(driver.leased(layer)[index], layer, index)
    for _, message in of(driver.said, wire.Lease):
        order.append(message.digest)
    assert order == [digest("layer-1")] * 6 + [digest("layer-2")] * 6 + [digest("layer-3")] * 6


def test_a_layer_shared_with_a_running_image_stays_in_that_image() -> None:
    driver = Driver()
    driver.join(1, "base", "app-a", rollout="image-a")
    driver.join(2, "base", "app-b", rollout="image-b")
    assert driver.swarm("base").rollout.id == digest("image-a")
    assert driver.swarm("app-b").rollout.id == digest("image-b")


def test_credits_are_bounded_per_registry_and_shared_in_turn() -> None:
    driver = Driver(registry_credits=6)
    for blob in range(6):
        for number in (2 * blob + 1, 2 * blob + 2):
            driver.join(number, f"blob-{blob}", chunks=30)
    assert driver.swarms.state.registries[REGISTRY].credits_out == 6
    served: dict[int, int] = dict.fromkeys(range(6), 0)
    for turn in range(90):
        node, lease = of(driver.said, wire.Lease)[turn]  # the upstream serves them in the order they were given
        blob = (node - 1) // 2
        driver.got(node, f"blob-{blob}", lease.first)
        served[blob] += 1
        assert driver.swarms.state.registries[REGISTRY].credits_out <= 6
    assert min(served.values()) >= 10


def test_another_registry_is_not_held_up() -> None:
    driver = Driver(registry_credits=1)
    driver.join(1, "blob-1")
    driver.join(2, "blob-2", registry="other.example")
    assert driver.leased("blob-1") and driver.leased("blob-2")


def test_the_leases_of_a_node_that_leaves_go_to_others_at_once() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=100)
    lost = {index for index, node in driver.leased("blob").items() if node == 1}
    assert lost
    before = len(driver.said)
    driver.disconnect(1)
    assert lost <= {index for node, index in leases(driver.said[before:]) if node != 1}


def test_a_lease_without_progress_goes_to_another_node_and_a_late_chunk_is_welcome() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=3)
    (index, slow), *_ = driver.leased("blob").items()
    driver.later(39.9)  # nobody shows progress: it may be the upstream that is slow
    assert driver.leased("blob")[index] == slow
    driver.later(0.2)
    assert driver.leased("blob")[index] != slow
    assert driver.swarms.counters.expired
    driver.got(slow, "blob", index)
    driver.got(driver.leased("blob")[index], "blob", index)
    assert driver.swarm("blob").tally.some() >> index & 1
    assert not driver.swarm("blob").missing >> index & 1


def test_a_chunk_that_came_late_is_not_read_again_when_its_second_reader_fails() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=3)
    (index, slow), *_ = driver.leased("blob").items()
    driver.later(40.1)
    second = driver.leased("blob")[index]
    driver.got(slow, "blob", index)
    driver.failed(second, "blob", index)
    driver.later(1.0)
    assert index not in driver.leased("blob") and not driver.swarm("blob").missing >> index & 1


def test_the_layers_of_an_image_are_not_all_read_by_the_same_few_nodes() -> None:
    driver = Driver()
    driver.checking = False
    layers = [f"layer-{number}" for number in range(10)]
    for number in range(1, 101):
        driver.join(number, *layers, chunks=8, rollout="image")
    readers = {node for layer in layers for node, _ in run_dry(driver, layer)}
    assert len(readers) > 40


def test_half_a_chunk_renews_a_lease() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=4)
    (index, node), *_ = driver.leased("blob").items()
    driver.later(8.0)
    driver.half(node, "blob", index)
    driver.later(9.0)
    assert driver.leased("blob")[index] == node


def test_where_halves_take_long_leases_do() -> None:
    driver = Driver(lease_timeout=10.0)
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=40)
    for index, node in list(driver.leased("blob").items()):
        driver.later(4.0)
        driver.half(node, "blob", index)
    given = driver.leased("blob")
    driver.later(30.0)
    assert driver.leased("blob") == given and not driver.swarms.counters.expired


def test_chunks_that_a_joining_node_has_are_not_read() -> None:
    driver = Driver()
    driver.join(1, "blob", chunks=8, have={"blob": (0, 1, 2)})
    driver.join(2, "blob", chunks=8)
    run_dry(driver, "blob")
    assert [index for _, index in leases(driver.said)] == [3, 4, 5, 6, 7]


def test_nothing_is_read_of_a_blob_that_somebody_holds() -> None:
    driver = Driver()
    driver.connect(1)
    driver.say(1, wire.Holds([digest("blob")]))
    for number in (2, 3, 4):
        driver.join(number, "blob")
        (joined,) = driver.take(number, wire.Joined)
        assert node_id(1) in {peer.node for peer in joined.peers}
        assert joined.swarms[0].holders == 1
    driver.later(5.0)
    assert of(driver.said, wire.Lease) == []


def test_nothing_more_is_read_once_somebody_is_done() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        driver.join(number, "blob", chunks=50)
    driver.done(1, "blob")
    before = len(driver.said)
    for index, node in list(driver.leased("blob").items()):
        driver.got(node, "blob", index)
    assert leases(driver.said[before:]) == []


def test_a_holder_that_leaves_does_not_make_everything_be_read_again() -> None:
    driver = Driver()
    driver.connect(1)
    driver.say(1, wire.Holds([digest("blob")]))
    driver.join(2, "blob")
    driver.join(3, "blob")
    driver.disconnect(1)
    assert of(driver.said, wire.Lease) == []  # they may have all of it by now; they will miss what they lack
    assert leases(driver.miss(2, "blob", 5)) in ([(2, 5)], [(3, 5)])


def test_the_joins_size_decides_the_chunk_size_and_a_want_may() -> None:
    driver = Driver()
    driver.connect(1, 2)
    big, small = digest("big"), digest("small")
    driver.say(1, wire.Join(digest("image"), REGISTRY, [wire.Want(big, 600 * 2**20), wire.Want(small, 2**20)]))
    (joined,) = driver.take(1, wire.Joined)
    assert [swarm.chunk_size for swarm in joined.swarms] == [2 * 2**20, 2 * 2**20]
    driver.say(2, wire.Join(digest("other"), REGISTRY, [wire.Want(digest("kept"), 600 * 2**20, 256 * 1024)]))
    assert driver.take(2, wire.Joined)[0].swarms[0].chunk_size == 256 * 1024
    driver.say(1, wire.Join(digest("other"), REGISTRY, [wire.Want(digest("kept"), 600 * 2**20, 2**20, b"\xff")]))
    assert driver.take(1, wire.Joined)[0].swarms[0].chunk_size == 256 * 1024
    assert driver.swarm("kept").tally.some() == 0  # its bitmap was for another chunk size


def test_an_impossible_chunk_size_is_not_taken() -> None:
    driver = Driver()
    driver.connect(1)
    for wanted in (1, 3 * 2**16, -65536, 2**30):
        driver.say(1, wire.Join(digest(wanted), REGISTRY, [wire.Want(digest(wanted), 10 * CHUNK, wanted)]))
        assert driver.take(1, wire.Joined)[0].swarms[0].chunk_size == CHUNK


def test_a_node_that_lies_about_a_size_stands_alone() -> None:
    driver = Driver()
    driver.join(1, "blob", chunks=3)
    driver.join(2, "blob", chunks=8)
    driver.join(3, "blob", chunks=8)
    (joined,) = driver.take(3, wire.Joined)
    assert joined.swarms[0].members == 2
    assert {peer.node for peer in joined.peers} == {node_id(2)}


def test_a_node_that_corrects_a_size_changes_its_place() -> None:
    driver = Driver()
    driver.join(1, "blob", chunks=3)
    driver.join(2, "blob", chunks=8)
    driver.join(1, "blob", chunks=8)
    assert driver.take(1, wire.Joined)[-1].swarms[0].members == 2
    assert len(driver.swarms.state.swarms[digest("blob")]) == 1


def test_runs_of_chunks_give_their_credit_back_at_half_of_the_run() -> None:
    driver = Driver(run=4)
    driver.join(1, "blob", chunks=64)
    driver.join(2, "blob", chunks=64)
    lease = driver.swarm("blob").leases[0]
    assert lease.count == 4
    node = driver.leased("blob")[0]
    driver.got(node, "blob", 0)
    assert lease.credit
    driver.got(node, "blob", 1)
    assert not lease.credit
    driver.got(node, "blob", 2)
    driver.got(node, "blob", 3)
    assert not lease.left


def test_limits_leave_out_what_is_too_much() -> None:
    driver = Driver(max_swarms_per_node=2, max_swarms=3)
    driver.join(1, "a", "b", "c")
    (joined,) = driver.take(1, wire.Joined)
    assert [swarm.digest for swarm in joined.swarms] == [digest("a"), digest("b")]
    driver.join(2, "d", "e")
    assert [swarm.digest for swarm in driver.take(2, wire.Joined)[0].swarms] == [digest("d")]


def test_words_about_what_a_node_has_no_part_in_change_nothing() -> None:
    driver = Driver()
    driver.join(1, "blob")
    driver.join(2, "blob")
    driver.connect(3)
    index, node = next(iter(driver.leased("blob").items()))
    before = dict(driver.leased("blob"))
    other = 3 - node
    for message in (
        wire.Half(digest("blob"), index),
        wire.Failed(digest("blob"), index, 404, True),
    ):
        assert driver.say(other, message) == []
        assert driver.say(3, message) == []
    assert driver.got(3, "blob", index) == []
    assert driver.say(1, wire.Got(digest("blob"), 60_000, b"", b"")) == []
    assert driver.say(99, wire.Half(digest("blob"), index)) == []
    assert driver.leased("blob") == before


def rejoin(driver: Driver, number: int, blob: str, *reading: int, have: bytes = b"", streaming: bool = False):
    if node_id(number) not in driver.swarms.state.nodes:
        driver.connect(number)
    want = wire.Want(digest(blob), 8 * CHUNK, CHUNK, have, list(reading), streaming)
    return driver.say(number, wire.Join(digest(blob), REGISTRY, [want]))


def test_a_tracker_that_takes_over_leases_nothing_that_somebody_is_reading() -> None:
    driver = Driver()
    rejoin(driver, 1, "blob", 0, 3, have=bitmap(1))
    said = rejoin(driver, 2, "blob", 2, have=bitmap(4))
    assert driver.leased("blob").items() >= {0: 1, 3: 1, 2: 2}.items()
    for number, index in leases(driver.said):
        assert (number, index) not in {(1, 0), (1, 3), (2, 2)} and index not in {0, 1, 2, 3, 4}, said


def test_a_read_that_was_said_again_is_leased_to_another_when_its_reader_goes() -> None:
    driver = Driver()
    rejoin(driver, 1, "blob", 0)
    driver.join(2, "blob")
    driver.disconnect(1)
    driver.later(1.0)
    assert driver.leased("blob").get(0) == 2 or driver.swarm("blob").alone is not None


def test_nobody_can_claim_more_than_its_share_or_what_another_reads() -> None:
    driver = Driver()
    rejoin(driver, 1, "blob", 0)
    rejoin(driver, 2, "blob", 0, 1, 2, 3, 4, 5, 6, 7, 100)
    assert driver.leased("blob")[0] == 1
    assert sum(reader == 2 for reader in driver.leased("blob").values()) <= driver.rules.leases_per_node


def test_a_stream_goes_on_under_another_tracker_and_is_called_back_when_somebody_joins() -> None:
    driver = Driver(alone_after=0.0)
    rejoin(driver, 1, "blob", have=bitmap(0), streaming=True)
    assert of(driver.said, wire.Lease) == []
    said = driver.join(2, "blob")
    assert [number for number, _ in of(said, wire.Recall)] == [1]


def test_of_two_streams_under_another_tracker_both_are_called_back() -> None:
    driver = Driver(alone_after=0.0)
    rejoin(driver, 1, "blob", streaming=True)
    rejoin(driver, 2, "blob", streaming=True)
    assert {number for number, _ in of(driver.said, wire.Recall)} == {1, 2}


def read_at_their_own_pace(driver: Driver, seconds: dict[int, float]) -> list[tuple[int, int]]:
    """Each node needs so long for a chunk, until nothing is leased; who read what."""
    read, granted = [], {}
    while pending := driver.leased("blob"):
        for index, node in pending.items():
            granted.setdefault(index, driver.now + seconds[node])
        index = min(pending, key=lambda index: granted[index])
        driver.later(max(0.0, granted[index] - driver.now))
        driver.half(pending[index], "blob", index)
        driver.got(pending[index], "blob", index)
        read.append((pending[index], index))
    return read


def test_a_slow_node_reads_its_share_but_none_of_the_last_chunks_for_which_all_would_wait() -> None:
    driver = Driver()
    for number in range(1, 13):
        driver.join(number, "blob", chunks=200)
    read = read_at_their_own_pace(driver, {**dict.fromkeys(range(1, 12), 0.1), 12: 0.4})
    by_slow = [index for node, index in read if node == 12]
    assert len(by_slow) >= 3 and max(by_slow) < 200 - 32
    assert len(read) == 200


def test_where_all_others_have_their_hands_full_a_slow_node_reads_the_last_chunks_too() -> None:
    driver = Driver()
    for number in (1, 2):
        driver.join(number, "blob", chunks=60)
    read = read_at_their_own_pace(driver, {1: 0.1, 2: 0.4})
    assert len(read) == 60
    assert any(node == 2 and index >= 60 - 32 for node, index in read)
