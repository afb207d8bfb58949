"""What is to happen later, in order of time. Pure: whoever owns it says what time it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from p2pdist.protocol.messages import FromTracker

Outbox = list[tuple[bytes, FromTracker]]  # messages to send, each with the node it goes to
Action = Callable[[float, Outbox], None]


class Timers:
    """A heap of actions. They are never cancelled: an action looks whether its reason still holds."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def at(self, when: float, action: Action) -> None:
        """Run `action(now, outbox)` at the first `run` at or after `when` (seconds)."""
        heapq.heappush(self._heap, (when, next(self._numbers), action))

    def next(self) -> float | None:
        """When the earliest action is due; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def run(self, now: float, out: Outbox) -> None:
        """Run everything due at `now`, in order."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2](now, out)
