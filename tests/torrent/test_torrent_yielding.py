"""What a gateway sends leaves a link to other traffic, and takes it when it is free: on a model of the link."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from p2pdist.torrent.yielding import EVERY, Yielding

LINE = 2_500_000.0  # bytes per second
EMPTY = 0.08  # seconds there and back
BUFFER = 0.1  # seconds of queue, at most


@dataclass
class Link:
    """A TCP flow keeps half of the buffer full, and takes what is left; uTP keeps 25 ms when it has it alone."""

    yielding: Yielding
    now: float = 0.0
    rate: float = 0.0

    def run(self, seconds: float, *, flow: bool) -> float:
        """The share of the link that the transfer had in the last half of that time."""
        sent = 0.0
        steps = round(seconds / EVERY)
        for step in range(steps):
            self.rate = min(LINE, self.yielding.limit)
            queue = BUFFER / 2 if flow else 0.025 if self.rate >= LINE else 0.0
            self.yielding.look(self.now, [("gateway", EMPTY + queue)], self.rate)
            self.now += EVERY
            sent += self.rate if step >= steps // 2 else 0.0
        return sent / (steps - steps // 2) / LINE


def test_other_traffic_keeps_its_link_and_the_transfer_takes_it_when_that_stops() -> None:
    link = Link(Yielding())
    link.yielding.look(0.0, [("gateway", EMPTY)], 0.0)  # the way was empty once
    assert link.run(8.0, flow=True) <= 0.12
    assert link.run(10.0, flow=False) >= 0.95
    assert link.run(8.0, flow=True) <= 0.12


def test_a_transfer_never_stops_altogether() -> None:
    yielding = Yielding()
    yielding.look(0.0, [("gateway", EMPTY)], 0.0)
    for step in range(100):
        yielding.look(step * EVERY, [("gateway", EMPTY + 2.0)], 0.0)
    assert yielding.limit >= 64 * 1024


def test_no_more_is_sent_than_was_configured() -> None:
    link = Link(Yielding(1_000_000))
    assert link.run(20.0, flow=False) == pytest.approx(0.4)


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    yielding = Yielding()
    before = yielding.limit
    for step in range(100):
        yielding.look(step * EVERY, [("gateway", EMPTY)], 1000.0)
    assert yielding.limit == before


def test_a_way_that_became_longer_for_good_is_no_queue_after_an_hour() -> None:
    yielding = Yielding()
    yielding.look(0.0, [("gateway", EMPTY)], 0.0)
    for minute in range(1, 120):
        yielding.look(minute * 60.0, [("gateway", 2 * EMPTY)], yielding.limit)
    assert yielding.limit > LINE
