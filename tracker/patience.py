"""How long a session may be silent, and how long it may leave unread what it is sent.

One timer for all sessions, however many there are and whatever they say: a timeout around each frame costs more than
reading it, and thousands of timers cost more than the rest of what idle agents do.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

LOOKS = 1000  # in the time that an agent may be silent, at most
LATE = 1.0  # seconds: a timer that comes later than this says that this process itself stood still


class Vigil:
    """Over all sessions of a tracker. `silence`: seconds that an agent may say nothing; `stall`: that it may not take
    a frame.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float, stall: float) -> None:
        self._loop = loop
        self._silence = silence
        self._stall = stall
        self._numbers = count()
        self._watched = 0
        # When each session could be found silent as it was last looked at; what is said since then moves nothing here.
        self._heap: list[tuple[float, int, Patience]] = []
        self._sending: dict[Patience, float] = {}  # since when a frame waits to be taken; the oldest first
        self._due = 0.0
        self._timer: asyncio.Handle | None = None

    def watch(self, over: Callable[[bool], None]) -> Patience:
        """A session begins. `over(silent)` is called once when the patience with it is at an end: True if the agent
        said nothing for too long, False if it didn't take a frame. Needs `stop` at the end of the session.
        """
        patience = Patience(self._loop, self._sending, over, self._left)
        self._watched += 1
        self._expect(patience)
        if self._timer is None:
            self._arm(patience.heard_at)
        return patience

    def _expect(self, patience: Patience) -> None:
        heapq.heappush(self._heap, (patience.heard_at + self._silence, next(self._numbers), patience))

    def _left(self) -> None:
        self._watched -= 1
        if not self._watched:
            self._heap.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _arm(self, now: float) -> None:
        """The next look: not later than what begins from now on can be over, not at once for each of thousands."""
        self._due = now + min(self._silence, self._stall)
        if self._heap:
            self._due = min(self._due, max(self._heap[0][0], now + self._silence / LOOKS))
        if self._sending:
            self._due = min(self._due, next(iter(self._sending.values())) + self._stall)
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if now - self._due > LATE:  # what was said meanwhile is read in this turn
            self._forgive(now)
        self._end(now)
        if self._watched:
            self._arm(now)

    def _forgive(self, now: float) -> None:
        """Nobody is blamed for the time in which this process stood still."""
        for patience in self._sending:
            self._sending[patience] = now
        earliest = now - self._silence + min(LATE, self._silence)
        for _, _, patience in self._heap:
            patience.heard_at = max(patience.heard_at, earliest)

    def _end(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            patience = heapq.heappop(self._heap)[2]
            if patience.heard_at + self._silence > now:
                self._expect(patience)
            else:
                patience.end(True)
        for patience in [patience for patience, since in self._sending.items() if since + self._stall <= now]:
            patience.end(False)


class Patience:
    """With one session; made by `Vigil.watch`."""

    __slots__ = ("_left", "_loop", "_over", "_sending", "heard_at")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sending: dict[Patience, float],
        over: Callable[[bool], None],
        left: Callable[[], None],
    ) -> None:
        self.heard_at = loop.time()
        self._loop = loop
        self._sending = sending
        self._over: Callable[[bool], None] | None = over
        self._left = left

    def heard(self) -> None:
        """The agent said something."""
        self.heard_at = self._loop.time()

    def sending(self) -> None:
        """A frame is being handed over."""
        if self._over is not None:
            self._sending.setdefault(self, self._loop.time())

    def sent(self) -> None:
        """All frames are on their way."""
        self._sending.pop(self, None)

    def end(self, silent: bool) -> None:
        """It is over."""
        over = self._over
        self.stop()
        if over is not None:
            over(silent)

    def stop(self) -> None:
        """The session is over, for whatever reason."""
        self._sending.pop(self, None)
        if self._over is not None:
            self._over = None
            self._left()
