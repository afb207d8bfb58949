"""A session's patience: who is silent or doesn't read is found out in time, and nobody else."""

from __future__ import annotations

import heapq
from types import SimpleNamespace

import pytest

from tracker.patience import Patience, Vigil


class Clock:
    """A loop's clock and timers; `stall` lets time pass without running them, as a stopped process does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, int, SimpleNamespace]] = []
        self.set = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when, call):
        self.set += 1
        handle = SimpleNamespace(call=call, dead=False)
        handle.cancel = lambda: setattr(handle, "dead", True)
        heapq.heappush(self.timers, (when, self.set, handle))
        return handle

    def stall(self, seconds: float) -> None:
        self.now += seconds

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            when, _, handle = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            if not handle.dead:
                handle.call()
        self.now = max(self.now, end)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends() -> list[bool]:
    return []


@pytest.fixture
def vigil(clock) -> Vigil:
    return Vigil(clock, 30.0, 10.0)


@pytest.fixture
def patience(vigil, ends) -> Patience:
    return vigil.watch(ends.append)


def test_who_says_nothing_is_found_silent_when_the_time_is_over(clock, patience, ends) -> None:
    clock.run(12)
    patience.heard()
    clock.run(29.9)
    assert ends == []
    clock.run(0.2)
    assert ends == [True]


def test_who_does_not_take_a_frame_is_found_out_although_it_talks(clock, patience, ends) -> None:
    clock.run(3)
    patience.sending()
    for _ in range(9):
        clock.run(1)
        patience.heard()
    assert ends == []
    clock.run(1.1)
    assert ends == [False]


def test_who_talks_and_reads_stays_and_costs_no_timer_per_frame(clock, patience, ends) -> None:
    before = clock.set
    for _ in range(10_000):
        clock.run(0.1)
        patience.heard()
        patience.sending()
        patience.sent()
    assert ends == [] and clock.set - before <= 1000.0 / 10.0 + 1


def test_a_tracker_that_stood_still_does_not_blame_its_agents(clock, patience, ends) -> None:
    clock.run(5)
    patience.sending()
    clock.stall(300)
    clock.run(0.5)  # the timers are late; what the agents said meanwhile is read now
    assert ends == []
    patience.sent()
    patience.heard()
    clock.run(29)
    assert ends == []
    clock.run(2)
    assert ends == [True]


def test_an_agent_that_went_away_while_the_tracker_stood_still_is_still_found_out(clock, patience, ends) -> None:
    clock.stall(300)
    clock.run(1.5)
    assert ends == [True]


def test_nothing_comes_after_the_end_of_the_session(clock, patience, ends) -> None:
    patience.stop()
    clock.run(1000)
    assert ends == []


def test_thousands_of_sessions_cost_as_many_timers_as_one(clock, vigil) -> None:
    ended: list[int] = []
    sessions = [vigil.watch(lambda silent, number=number: ended.append(number)) for number in range(2000)]
    for _ in range(10):
        clock.run(10)
        for patience in sessions:
            patience.heard()
    assert ended == [] and clock.set <= 100.0 / 10.0 + 1


def test_of_many_sessions_those_end_in_turn_that_are_silent_or_do_not_read(clock, vigil) -> None:
    ended: list[tuple[str, bool]] = []

    def watch(name: str) -> Patience:
        return vigil.watch(lambda silent: ended.append((name, silent)))

    early, talks, late, deaf = (watch(name) for name in ("early", "talks", "late", "deaf"))
    clock.run(1)
    late.heard()
    for _ in range(14):
        clock.run(2)
        talks.heard()
        deaf.heard()
    assert ended == []
    deaf.sending()
    clock.run(1.5)  # 30.5
    assert ended == [("early", True)]
    clock.run(1)  # 31.5
    assert ended == [("early", True), ("late", True)]
    talks.heard()
    clock.run(8)  # 39.5
    assert ended == [("early", True), ("late", True), ("deaf", False)]
    clock.run(60)
    assert ended[3:] == [("talks", True)]
    for patience in (early, talks, late, deaf):  # whoever is out stays out
        patience.heard()
        patience.sending()
        patience.stop()
    clock.run(1000)
    assert len(ended) == 4


def test_a_tracker_without_sessions_has_no_timer(clock, vigil, patience, ends) -> None:
    patience.stop()
    before = clock.set
    clock.run(1000)
    assert clock.set == before
    vigil.watch(ends.append)
    clock.run(31)
    assert ends == [True]
