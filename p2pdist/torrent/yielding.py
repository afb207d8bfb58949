"""How fast a gateway sends to other sites: as fast as leaves the link to other traffic. Pure.

uTP yields to what begins after it. A new connection takes the shortest delay that it has seen itself for that of the
empty link; begun beside a TCP flow that kept a queue, it took 60 to 85% of the link. The control links between
gateways are older, so their round trips tell a queue from the way; docs/adr/0025.
"""

from __future__ import annotations

from collections.abc import Iterable

EVERY = 0.25  # seconds between two looks
_QUEUE = 0.035  # seconds of queue that are no other traffic's: uTP's own 25 ms, and a little
_LESS, _MORE = 0.7, 1.3  # times, at each look
_LEAST = 256 * 1024  # bytes per second: a transfer goes on, however full the link is
_FIRST = 512 * 1024
_UNBOUNDED = 1_000_000_000
_USED = 0.7  # of the limit, or a higher one would mean nothing
_WINDOW = 1800.0  # seconds for which the shortest round trip counts; then the way may have become another one


class Yielding:
    """`limit`: bytes per second that may be sent now. `most`: of it, 0: no bound."""

    def __init__(self, most: int = 0) -> None:
        self._most = most or _UNBOUNDED
        self.limit = min(_FIRST, self._most)
        self._shortest: dict[str, tuple[float, float, float]] = {}  # by host: this window's, the last one's, its start

    def look(self, now: float, round_trips: Iterable[tuple[str, float]], rate: float) -> int:
        """The new limit. `round_trips`: seconds, by the host at the other end; `rate`: bytes per second sent lately."""
        queue = max((self._queue(now, host, seconds) for host, seconds in round_trips), default=0.0)
        if queue > _QUEUE:
            self.limit = max(_LEAST, round(_LESS * min(self.limit, 1.5 * rate + _LEAST)))
        elif rate > _USED * self.limit:
            self.limit = min(round(_MORE * self.limit), self._most)
        return self.limit

    def _queue(self, now: float, host: str, seconds: float) -> float:
        this, last, since = self._shortest.get(host, (seconds, seconds, now))
        if now - since > _WINDOW:
            this, last, since = seconds, this, now
        this = min(this, seconds)
        self._shortest[host] = (this, last, since)
        return seconds - min(this, last)
