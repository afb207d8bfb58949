"""A lone node reads a blob as one stream; when others turn up it is called back, and nothing is read twice."""

from __future__ import annotations

from tracker_driver import Driver, bitmap, digest, leases, node_id, of

from p2pdist.protocol import messages as wire


def streams(said) -> list[tuple[int, str, int]]:
    return [(number, message.digest, message.first) for number, message in of(said, wire.Lease) if message.alone]


def alone(*blobs: str, chunks: int = 8, **rules) -> Driver:
    """A node that has been alone with these blobs for long enough to stream."""
    driver = Driver(alone_after=0.0, **rules)
    driver.join(1, *blobs, chunks=chunks)
    return driver


def test_a_lone_node_gets_everything_as_one_stream() -> None:
    driver = alone("blob")
    ((number, message),) = of(driver.said, wire.Lease)
    assert (number, message.alone, message.first, message.count) == (1, True, 0, 8)
    driver.later(3600.0)  # it reports nothing, and needn't
    assert len(of(driver.said, wire.Lease)) == 1


def test_a_lone_node_starts_with_chunks_so_that_a_rollout_recalls_no_stream() -> None:
    driver = Driver(alone_after=0.25)
    for number in range(1, 13):
        driver.join(number, "blob", chunks=100)
        driver.later(0.01)
    driver.later(1.0)
    assert streams(driver.said) == [] and of(driver.said, wire.Recall) == []


def test_a_node_that_stays_alone_goes_over_to_a_stream_when_its_chunks_are_in() -> None:
    driver = Driver(alone_after=0.25)
    driver.join(1, "blob", chunks=100)
    driver.got(1, "blob", 0)
    driver.later(0.3)
    assert streams(driver.said) == []  # it still reads chunks
    for index in list(driver.leased("blob")):
        driver.got(1, "blob", index)
    assert streams(driver.said) == [(1, digest("blob"), 3)]
    assert not driver.leased("blob")


def test_two_streams_at_once_earlier_layers_first() -> None:
    driver = alone("a", "b", "c", "d")
    assert [name for _, name, _ in streams(driver.said)] == [digest("a"), digest("b")]
    driver.done(1, "b")
    assert [name for _, name, _ in streams(driver.said)][2:] == [digest("c")]
    driver.done(1, "a")
    driver.done(1, "c")
    assert [name for _, name, _ in streams(driver.said)][3:] == [digest("d")]


def test_a_second_node_calls_the_stream_back_and_the_rest_is_leased() -> None:
    driver = alone("blob")
    said = driver.join(2, "blob")
    assert of(said, wire.Recall) == [(1, wire.Recall(digest("blob")))]
    assert leases(said) == []  # the stream still reads
    (joined,) = driver.take(2, wire.Joined)
    assert [peer.node for peer in joined.peers] == [node_id(1)]
    said = driver.say(1, wire.Returned(digest("blob"), bitmap(0, 1, 2)))
    assert {index for _, index in leases(said)} <= {3, 4, 5, 6, 7} and leases(said)
    while pending := driver.leased("blob"):
        index, node = min(pending.items())
        driver.got(node, "blob", index)
    assert sorted(index for _, index in leases(driver.said)) == [3, 4, 5, 6, 7]


def test_a_stream_is_called_back_once() -> None:
    driver = alone("blob")
    for number in (2, 3, 4):
        driver.join(number, "blob")
    assert len(of(driver.said, wire.Recall)) == 1


def test_a_recall_without_an_answer_ends_after_two_seconds_and_a_late_answer_counts() -> None:
    driver = alone("blob")
    driver.join(2, "blob")
    driver.later(1.9)
    assert not driver.leased("blob")
    driver.later(0.2)
    assert driver.leased("blob")
    driver.say(1, wire.Returned(digest("blob"), bitmap(3, 4, 5, 6, 7)))
    assert not driver.swarm("blob").missing & 0b11111000


def test_the_stream_of_a_node_that_dies_while_recalled_is_leased_to_others() -> None:
    driver = Driver(alone_after=0.25)
    driver.join(1, "blob")
    driver.later(0.3)
    for index in list(driver.leased("blob")):
        driver.got(1, "blob", index)
    driver.join(2, "blob")
    driver.join(3, "blob")
    driver.disconnect(1)
    while pending := driver.leased("blob"):
        index, node = min(pending.items())
        driver.got(node, "blob", index)
    assert driver.swarm("blob").tally.some() == 0b11111111


def test_a_node_left_alone_streams_what_nobody_has() -> None:
    driver = Driver()
    for number in (1, 2):
        driver.join(number, "blob")
    driver.later(0.9)
    assert driver.leased("blob") == {0: 1, 1: 1}
    driver.got(1, "blob", 0)
    driver.got(2, "blob", 2)
    driver.disconnect(2)
    assert streams(driver.said) == []  # it still reads a chunk or two
    for index in list(driver.leased("blob")):
        driver.got(1, "blob", index)
    assert not driver.swarm("blob").tally.some() & 1 << 2
    assert streams(driver.said) == [(1, digest("blob"), 2)]


def test_a_node_whose_only_companion_is_dead_streams() -> None:
    driver = Driver()
    driver.join(1, "blob")
    driver.join(2, "blob")
    driver.say(2, wire.Dead(node_id(1)))
    driver.later(1.0)
    for index in list(driver.leased("blob")):
        driver.got(2, "blob", index)
    assert [(number, name) for number, name, _ in streams(driver.said)] == [(2, digest("blob"))]


def test_a_holder_that_turns_up_calls_the_stream_back_and_is_introduced() -> None:
    driver = alone("blob")
    driver.connect(2)
    said = driver.say(2, wire.Holds([digest("blob")]))
    assert of(said, wire.Recall)
    ((number, message),) = of(said, wire.Neighbours)
    assert number == 1 and [peer.node for peer in message.peers] == [node_id(2)]
    said = driver.say(1, wire.Returned(digest("blob"), bitmap(0)))
    assert of(said, wire.Lease) == []


def test_a_stream_that_fails_is_tried_again_later_and_later() -> None:
    driver = alone("blob")
    gaps = []
    for _ in range(5):
        begun = driver.now
        count = len(streams(driver.said))
        driver.failed(1, "blob", 3, status=502)
        while len(streams(driver.said)) == count:
            driver.later(0.05)
        gaps.append(round(driver.now - begun, 2))
    assert gaps == sorted(gaps) and gaps[0] <= 0.3 and 1.0 <= gaps[-1] <= 8.1


def test_streams_hold_no_credits() -> None:
    driver = Driver(alone_after=0.0, registry_credits=1)
    for number in range(1, 5):
        driver.join(number, f"blob-{number}")
    assert len(streams(driver.said)) == 4
    assert driver.swarm("blob-1").rollout.registry.credits_out == 0


def test_leaving_frees_the_stream_for_the_next_layer() -> None:
    driver = alone("a", "b", "c")
    said = driver.say(1, wire.Leave(digest("a")))
    assert streams(said) == [(1, digest("c"), 0)]


def test_a_recalled_stream_that_was_done_already_needs_no_lease() -> None:
    driver = alone("blob")
    driver.join(2, "blob")
    said = driver.done(1, "blob")
    assert of(said, wire.Lease) == []
    driver.later(5.0)
    assert leases(driver.said) == []
