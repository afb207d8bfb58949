"""How long a session may be silent, and how long it may leave unread what it is sent.

One timer per session, however many frames it sees: a timeout around each frame costs more than reading it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE = 1.0  # seconds: a timer that comes later than this says that this process itself stood still


class Patience:
    """Calls `over(silent)` once when it is at an end: True if the agent said nothing for `silence` seconds, False if it
    didn't take a frame for `stall` seconds. Needs `stop` at the end of the session.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, silence: float, stall: float, over: Callable[[bool], None]
    ) -> None:
        self._silence = silence
        self._stall = stall
        self._over = over
        self._loop = loop
        self._heard = self._loop.time()
        self._sending = 0.0  # since when a frame waits to be taken; 0: none does
        self._due = 0.0
        self._timer: asyncio.Handle
        self._arm(self._heard)

    def heard(self) -> None:
        """The agent said something."""
        self._heard = self._loop.time()

    def sending(self) -> None:
        """A frame is being handed over."""
        self._sending = self._loop.time()

    def sent(self) -> None:
        """The frame is on its way."""
        self._sending = 0.0

    def stop(self) -> None:
        """The session is over."""
        self._timer.cancel()

    def _arm(self, now: float) -> None:
        self._due = min(self._heard + self._silence, (self._sending or now) + self._stall)
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now - self._due > LATE:  # what was said meanwhile is read in this turn
            if self._sending:
                self._sending = now
            self._heard = max(self._heard, now - self._silence + min(LATE, self._silence))
            self._arm(now)
        elif self._heard + self._silence <= now:
            self._over(True)
        elif self._sending and self._sending + self._stall <= now:
            self._over(False)
        else:
            self._arm(now)
