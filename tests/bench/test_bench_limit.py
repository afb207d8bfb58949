"""The arithmetic that every figure of the bench rests on."""

from __future__ import annotations

import pytest
from rollout_limit import Link, fluid_limits, ratios, starts

MIB = 1 << 20


def test_equal_links_make_the_limit_size_over_rate() -> None:
    limits = fluid_limits(64 * MIB, 50, [Link(50, 50)] * 12)
    assert limits == pytest.approx([10.737] * 12, abs=0.001)


def test_a_source_at_a_quarter_of_the_rate_is_what_everyone_waits_for() -> None:
    assert fluid_limits(64 * MIB, 12.5, [Link(50, 50)] * 12) == pytest.approx([42.95] * 12, abs=0.01)


def test_a_slow_node_has_its_own_limit_and_the_others_keep_theirs() -> None:
    limits = fluid_limits(64 * MIB, 50, [Link(50, 50), Link(12.5, 12.5)])
    assert limits == pytest.approx([10.737, 42.95], abs=0.01)


def test_narrow_uplinks_make_the_joint_capacity_the_limit() -> None:
    """N*F/(u_source + sum u_i): ten nodes that can each send a tenth of what they receive."""
    limits = fluid_limits(64 * MIB, 50, [Link(5, 50)] * 10)
    assert limits == pytest.approx([10 * 10.737 * 50 / 100] * 10, rel=0.001)


def test_a_late_starter_is_not_owed_what_the_source_has_already_sent() -> None:
    limits = fluid_limits(64 * MIB, 12.5, [Link(50, 50), Link(50, 50, offset=30.0), Link(50, 50, offset=60.0)])
    assert limits == pytest.approx([42.95, 12.95, 10.737], abs=0.01)


def test_ratios_take_the_stricter_median_and_the_worst() -> None:
    found = ratios([11.0, 12.0, 20.0, 10.0], [10.0, 10.0, 19.0, 10.0])
    assert (found.p50, found.last, found.over) == (1.1, 1.2, 2.0)


def test_no_survivor_is_no_success() -> None:
    assert ratios([], []).p50 == float("inf")


def test_poisson_starts_are_the_seeds_and_spread_as_asked() -> None:
    offsets = starts("poisson:20", 400, 7)
    assert offsets == starts("poisson:20", 400, 7) != starts("poisson:20", 400, 8)
    assert offsets == sorted(offsets)
    assert offsets[-1] == pytest.approx(20, rel=0.2)


def test_waves_are_even_groups() -> None:
    assert starts("waves:3:2", 6, 7) == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    "pattern", ["", "later", "poisson", "poisson:0", "poisson:-1", "waves:3", "waves:0:1", "waves:x:1"]
)
def test_an_unknown_start_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        starts(pattern, 4, 7)
