"""When Python's garbage is to be looked for everywhere: seldom, because with thousands of agents that takes a while.

A session leaves about 10 KiB in reference cycles (aiohttp's). Everything else that a tracker drops is freed at once, so
how many sessions have ended says how much there is to find.
"""

from __future__ import annotations

from collections.abc import Callable

LEAST = 1000  # ended sessions: 10 MiB
LONGEST = 3600.0  # seconds between two looks, whatever happened


class Leftovers:
    """`collect`: looks for garbage everywhere (`gc.collect`). Seconds; the time is an argument."""

    def __init__(self, now: float, collect: Callable[[], object]) -> None:
        self._collect = collect
        self._last = now
        self._ended = 0

    def look(self, now: float, ended: int, sessions: int) -> None:
        """`ended`: sessions since the start; `sessions`: now. A look costs more, the more there are of these."""
        if ended - self._ended >= max(LEAST, sessions) or now - self._last >= LONGEST:
            self._last, self._ended = now, ended
            self._collect()
