"""Whether a tracker still lives: pings, seldom where nothing is awaited, and a silence that is noticed.

Hanging costs those dearly who wait: so whoever says something pings with it, and whoever has transfers under way pings
every half second. In large clusters the latter grow rarer (a thousand pings a second over all nodes is the most), the
former don't: a node says little (the design page on the swarm: three messages, and three for each chunk it reads).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pdist.protocol import messages
from p2pdist.protocol.messages import FromAgent
from p2pdist.tracker_client.session import Session

OFTEN = 0.5  # seconds between two pings of a node that waits or speaks, at least
PINGS = 1000.0  # a second, over all nodes that only wait
LIMIT = 1.0  # seconds without an answer after which a tracker is doubted, at least
LONGEST_LIMIT = 5.0
TIMES = 4.0  # ... or so many times what an answer takes on average
LATE = 0.2  # seconds: when this process itself was away that long, its tracker may have been heard only now


class Watch:
    """Over one session. `said` is set by whoever says something; `nodes` is how large the cluster is."""

    def __init__(
        self,
        session: Session,
        seldom: float,
        send: Callable[[FromAgent], bool],
        busy: Callable[[], bool],
        nodes: Callable[[], int],
    ) -> None:
        self.said = asyncio.Event()
        self._session = session
        self._seldom = seldom  # seconds between two pings that keep the session
        self._send = send
        self._busy = busy
        self._nodes = nodes
        self._usual = 0.0  # seconds until an answer, smoothed
        self._pinged = asyncio.get_running_loop().time()

    async def silence(self) -> None:
        """Ping for as long as there are answers; returns when none comes in time."""
        while True:
            await self._until_due()
            if not await self._answered():
                return

    def _interval(self) -> float:
        if self.said.is_set():
            return min(OFTEN, self._seldom)
        if self._busy():
            return min(max(OFTEN, self._nodes() / PINGS), self._seldom)
        return self._seldom

    def _due(self) -> float:
        """When the next ping is: who hears the tracker all the time needs to ask only so that its session is kept."""
        known = max(self._pinged, self._session.heard_at)
        return min(known + self._interval(), self._pinged + self._seldom)

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        while (wait := self._due() - loop.time()) > 0:
            if self.said.is_set():
                await asyncio.sleep(wait)
                continue
            try:
                async with asyncio.timeout(wait):
                    await self.said.wait()
            except TimeoutError:
                continue
        self.said.clear()

    async def _answered(self) -> bool:
        loop = asyncio.get_running_loop()
        heard = self._session.heard
        heard.clear()
        self._send(messages.Ping())
        self._pinged = loop.time()
        limit = min(LONGEST_LIMIT, max(LIMIT, TIMES * self._usual))
        due = self._pinged + limit
        while not heard.is_set():
            try:
                async with asyncio.timeout_at(due):
                    await heard.wait()
            except TimeoutError:
                now = loop.time()
                if now - due < LATE:
                    return heard.is_set()
                due = now + limit  # the silence was ours
        self._usual += 0.2 * (loop.time() - self._pinged - self._usual)
        return True
