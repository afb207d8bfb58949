"""How many wrong tokens a host may try, and all hosts together: only wrong ones count. Pure; times in seconds.

A token has 256 bits: nobody guesses one. What is bounded is the work that guessers make for the state, and for the API
server of Kubernetes.
"""

from __future__ import annotations

from tracker.bans import host_of
from tracker.pace import Pace

_MINUTE = 60.0
_MOST = 16_384  # hosts that are remembered; the one that was wrong longest ago is forgotten first


class Guesses:
    """`per_host`, `in_all`: wrong tokens in a minute, and at once after a quiet one.

    Beyond the limit of a host it isn't heard until the minute has room again. Beyond the limit in all, hosts that were
    wrong within the last minute aren't, and all others are: guessers with many addresses keep no honest host out.
    """

    def __init__(self, per_host: int, in_all: int, now: float, most: int = _MOST) -> None:
        self._per_host = per_host
        self._all = Pace(in_all / _MINUTE, in_all, now)
        self._most = most
        self._hosts: dict[str, tuple[Pace, float]] = {}  # and when it was wrong; the longest ago first

    def wait(self, address: str, now: float) -> float:
        """For how long no token from this address is looked at; 0: it is."""
        pace, last = self._hosts.get(host_of(address), (None, 0.0))
        if pace is None:
            return 0.0
        crowded = last + _MINUTE - now if self._all.wait(1, now) > 0 else 0.0
        return max(0.0, pace.wait(1, now), crowded)

    def wrong(self, address: str, now: float) -> None:
        """A token from there opened nothing."""
        host = host_of(address)
        known = self._hosts.pop(host, None)
        pace = known[0] if known is not None else Pace(self._per_host / _MINUTE, self._per_host, now)
        pace.take(1, now)
        self._all.take(1, now)
        self._hosts[host] = (pace, now)
        if len(self._hosts) > self._most:
            del self._hosts[next(iter(self._hosts))]
