"""The session with the tracker as the other rooms see it."""

from __future__ import annotations

from p2pdist.errors import TrackerError
from p2pdist.protocol import messages as wire
from p2pdist.tracker_client import TrackerClient


class Session:
    """The session with the tracker also where none is configured."""

    def __init__(self) -> None:
        self.client: TrackerClient | None = None

    @property
    def connected(self) -> bool:
        """A session is open."""
        return self.client is not None and self.client.connected

    @property
    def at(self) -> str:
        """The URL, by address, of the tracker that it is with; empty: with none."""
        place = self.client.place if self.client is not None else None
        return place.base if place is not None else ""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message; False while no session is open."""
        return self.client is not None and self.client.send(message)

    async def ask(self, key: str, timeout: float) -> wire.Content | wire.Fetch | wire.Absent:
        """Small content by key."""
        if self.client is None:
            raise TrackerError("no tracker is configured")
        return await self.client.ask(key, timeout)
