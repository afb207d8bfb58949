"""What one agent can do to a tracker: say much, want much, hold much, bring much. Its own share is all that suffers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracker_driver import REGISTRY, Driver, digest, node_id

from p2pdist.errors import ProtocolError
from p2pdist.oci import Digest
from p2pdist.protocol import limits, messages
from p2pdist.protocol import messages as wire
from tracker.pace import Pace, units
from tracker.rules import ContentRules
from tracker.small import SmallContent
from tracker.timers import Timers


def test_a_node_within_its_rate_never_waits_and_one_beyond_it_waits_as_long_as_it_was_too_fast() -> None:
    pace = Pace(100, 1000, 0.0)
    assert pace.take(1000, 0.0) == 0
    assert [pace.take(1, second / 99) for second in range(1, 500)] == [0.0] * 499
    assert pace.take(100, 499 / 99) == pytest.approx(1.0, abs=0.1)
    assert pace.take(0, 499 / 99 + 1.1) == pytest.approx(0.0, abs=0.05)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3000)), max_size=50))
def test_over_any_time_no_more_is_listened_to_than_the_rate_and_one_burst(said: list[tuple[float, float]]) -> None:
    """A tracker that waits as long as it is told."""
    pace, now, total = Pace(100, 1000, 0.0), 0.0, 0.0
    for pause, count in said:
        now += pause
        now += pace.take(count, now)
        total += count
        assert total <= 1000 + 100 * now + 1e-6


def test_an_image_of_127_layers_is_announced_at_once_by_a_node_that_has_half_a_million_blobs() -> None:
    wants = [wire.Want(digest(f"{number}"), 10**9) for number in range(127)]
    name = digest("holds")
    frame = [wire.Holds([name] * 4096)] * 8 + [wire.Join(digest("image"), REGISTRY, wants)]
    leases = [message for k in range(2000) for message in (wire.Half(name, k), wire.Got(name, k, b"s" * 32, b"x" * 64))]
    pace = Pace(2000, 20_000, 0.0)
    assert pace.take(units([*frame, *leases]), 0.0) == 0


def test_large_messages_count_for_more_than_small_ones() -> None:
    assert units([wire.Ping()]) == 1
    assert units([wire.Miss(digest("a"), list(range(256)))]) > 200
    assert units([wire.Offer("k", digest("a"), "", 65536, bytes(65536))]) > 10
    assert units([wire.Shown(digest("a"), 0, bytes(1 << 20))]) > 10


def test_a_frame_of_more_messages_than_anybody_has_to_say_is_none() -> None:
    frame = messages.encode([wire.Ping()] * (limits.MAX_FRAME_MESSAGES + 1))
    assert len(frame) < limits.MAX_TRACKER_FRAME
    with pytest.raises(ProtocolError):
        messages.decode_from_agent(frame)
    assert len(messages.decode_from_agent(messages.encode([wire.Ping()] * 1000))) == 1000


def test_wants_and_holds_beyond_a_nodes_share_are_left_out_and_counted() -> None:
    driver = Driver(max_swarms_per_node=3, max_holds_per_node=5)
    driver.connect(1)
    driver.connect(2)
    wants = [wire.Want(digest(f"{number}"), 1 << 20) for number in range(10)]
    driver.say(1, wire.Join(digest("image"), REGISTRY, wants))
    driver.say(1, wire.Holds([digest(f"h{number}") for number in range(10)]))
    (joined,) = [message for number, message in driver.said if isinstance(message, wire.Joined)]
    node = driver.swarms.state.nodes[node_id(1)]
    assert (len(joined.swarms), len(node.seats), len(node.holds)) == (3, 3, 5)
    assert driver.swarms.counters.over_quota == 12
    driver.say(2, wire.Join(digest("image"), REGISTRY, wants[:3]))  # the others have their own
    assert len(driver.swarms.state.nodes[node_id(2)].seats) == 3


def content(**rules: int) -> SmallContent:
    return SmallContent(ContentRules(**rules), Timers())


def bring(small: SmallContent, node: bytes, data: bytes) -> str:
    key = f"blob r/n@{Digest.of(data)}"
    small.ask(0.0, node, wire.Ask(1, key))
    small.offer(0.0, node, wire.Offer(key, str(Digest.of(data)), "", len(data), data))
    return key


def has(small: SmallContent, key: str) -> bool:
    """Whether a third node gets it at once."""
    ((_, answer),) = small.ask(0.0, b"c" * 32, wire.Ask(1, key))
    return isinstance(answer, wire.Content) and bool(answer.data)


def test_a_node_that_brings_content_without_end_pushes_out_its_own_and_nobody_elses() -> None:
    small = content(max_bytes=1 << 20, max_bytes_per_node=100_000)
    honest = bring(small, b"a" * 32, b"honest" * 1000)
    flood = [bring(small, b"b" * 32, number.to_bytes(4, "big") * 1000) for number in range(500)]
    assert has(small, honest)
    assert has(small, flood[-1]) and not has(small, flood[0])
    assert small.over_quota >= 470
    assert small.bytes < 1 << 20


def test_a_node_is_asked_to_bring_only_so_much_at_a_time() -> None:
    small = content(max_asks_per_node=10)
    node = b"b" * 32
    answers = [small.ask(0.0, node, wire.Ask(n, f"tag r/n:{n}"))[0][1] for n in range(30)]
    assert [isinstance(answer, wire.Fetch) for answer in answers] == [True] * 10 + [False] * 20
    assert small.over_quota == 20
    ((_, answer),) = small.ask(0.0, b"a" * 32, wire.Ask(1, "tag r/other:1"))
    assert isinstance(answer, wire.Fetch)
