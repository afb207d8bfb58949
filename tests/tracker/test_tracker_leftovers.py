"""Garbage is looked for as often as sessions end, not as often as agents speak."""

from __future__ import annotations

from tracker.leftovers import LEAST, LONGEST, Leftovers


def test_what_ended_sessions_leave_is_bounded_by_what_those_that_go_on_use() -> None:
    looks: list[int] = []
    ended = 0
    leftovers = Leftovers(0.0, lambda: looks.append(ended))
    for second in range(1, 1001):
        ended = 50 * second
        leftovers.look(float(second), ended, 5000)
    assert looks == list(range(5000, 50_001, 5000))


def test_a_few_sessions_that_end_cost_no_look_and_a_quiet_tracker_looks_once_an_hour() -> None:
    looks: list[float] = []
    leftovers = Leftovers(0.0, lambda: looks.append(second))
    for second in range(1, 8000):
        leftovers.look(float(second), min(second, LEAST - 1), 0)
    assert looks == [LONGEST, 2 * LONGEST]
