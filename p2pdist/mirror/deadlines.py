"""Time limits of what is waited for before an answer begins; all of them end early when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager


class Deadlines:
    """The open waits of one application. Times are seconds of the running loop's clock."""

    def __init__(self) -> None:
        self._open: set[asyncio.Timeout] = set()
        self.over = False

    @asynccontextmanager
    async def by(self, when: float | None) -> AsyncIterator[None]:
        """Raise TimeoutError in the body at `when` (None: never), or when the server stops.

        A deadline that has passed still lets a body through that needn't wait.
        """
        async with asyncio.timeout_at(now() if self.over else when) as timeout:
            self._open.add(timeout)
            try:
                yield
            finally:
                self._open.discard(timeout)

    def within(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """The same, `seconds` from now."""
        return self.by(now() + seconds)

    def end(self) -> None:
        """The server stops: what has not begun to be served is waited for no longer."""
        self.over = True
        for timeout in self._open:
            if not timeout.expired():
                timeout.reschedule(now())


def now() -> float:
    """The running loop's clock, in seconds."""
    return asyncio.get_running_loop().time()
