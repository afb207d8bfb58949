"""How late a process does what it set itself to do: what everybody who asks it something waits at least."""

from __future__ import annotations

WINDOW = 60.0  # seconds after which a late moment is forgotten, at the latest


class Lag:
    """The worst moment of the last half to whole window, in seconds. Pure: the time is an argument."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._before = 0.0
        self._most = 0.0

    def saw(self, now: float, late: float) -> None:
        """Something was `late` seconds late."""
        self._turn(now)
        self._most = max(self._most, late)

    def most(self, now: float) -> float:
        """The worst."""
        self._turn(now)
        return max(self._most, self._before)

    def _turn(self, now: float) -> None:
        if now - self._since >= WINDOW / 2:
            self._before = self._most if now - self._since < WINDOW else 0.0
            self._most, self._since = 0.0, now
