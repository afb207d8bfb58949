"""The lag that a tracker shows is the worst of the last minute, no older one."""

from __future__ import annotations

from tracker.lag import Lag


def test_the_worst_moment_is_shown_for_half_a_minute_and_forgotten_after_a_minute() -> None:
    lag = Lag(1000.0)
    assert lag.most(1000.0) == 0.0
    lag.saw(1001.0, 0.8)
    lag.saw(1002.0, 0.1)
    assert lag.most(1020.0) == 0.8
    assert lag.most(1031.0) == 0.8
    lag.saw(1040.0, 0.2)
    assert lag.most(1062.0) == 0.2
    assert lag.most(1093.0) == 0.0


def test_a_tracker_that_nobody_asks_for_long_shows_nothing_old() -> None:
    lag = Lag(1000.0)
    lag.saw(1001.0, 0.8)
    assert lag.most(2000.0) == 0.0
