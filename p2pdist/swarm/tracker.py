"""The session with the tracker, as far as swarms need it."""

from __future__ import annotations

from typing import Protocol

from p2pdist.protocol import messages as wire


class Tracker(Protocol):
    """What is sent never raises: with no session it is dropped, and a new session begins with a Join."""

    @property
    def connected(self) -> bool:
        """A session is open."""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message; False (and dropped) while no session is open."""
