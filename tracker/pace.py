"""How much one agent may say in a while: a token bucket, so that a flood slows its sender and nobody else. Pure.

A unit is about the work of one small message. An honest node that reads an image of 127 layers from upstream alone says
a few hundred in a second.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pdist.protocol import messages
from p2pdist.protocol.messages import FromAgent

_DIGESTS = 16  # announced digests in a unit
_BYTES = 4096  # of small content in a unit
_SHOWN = 65_536  # bytes of a blob that proves a lie in a unit: they are hashed and forgotten


class Pace:
    """`rate`: units a second; `burst`: units that a node which was quiet may say at once. Times in seconds."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._seen = now

    def take(self, units: float, now: float) -> float:
        """The node said so much: for how long it isn't listened to now, 0 as long as it is within bounds."""
        self._left = min(self._burst, self._left + (now - self._seen) * self._rate) - units
        self._seen = now
        return max(0.0, -self._left / self._rate)

    def wait(self, units: float, now: float) -> float:
        """For how long the node can't say so much and stay within bounds; 0: it can now."""
        left = min(self._burst, self._left + (now - self._seen) * self._rate)
        return max(0.0, (units - left) / self._rate)


def units(frame: Iterable[FromAgent]) -> float:
    """What a frame's messages count."""
    return sum(map(_units, frame))


def _units(message: FromAgent) -> float:
    match message:
        case messages.Join():
            return 1.0 + len(message.wants)
        case messages.Holds() | messages.Drops():
            return 1.0 + len(message.digests) / _DIGESTS
        case messages.Miss():
            return 1.0 + len(message.indexes)
        case messages.Offer():
            return 1.0 + len(message.data) / _BYTES
        case messages.Shown():
            return 1.0 + len(message.data) / _SHOWN
        case _:
            return 1.0
