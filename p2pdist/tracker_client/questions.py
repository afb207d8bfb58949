"""Questions to the tracker, each with its number: asked again when another tracker takes over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from p2pdist.errors import TrackerError
from p2pdist.protocol import messages
from p2pdist.protocol.messages import Absent, Content, Fetch, FromAgent

HANDOVER = 2.0  # seconds without a session after which those who wait are told so


class Questions:
    """`send` says False where there is no session."""

    def __init__(self, send: Callable[[FromAgent], bool]) -> None:
        self._send = send
        self._open: dict[int, tuple[str, asyncio.Future[Content | Fetch | Absent]]] = {}
        self._next = 0
        self._giving_up: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, key: str, timeout: float) -> Content | Fetch | Absent:
        """See `TrackerClient.ask`."""
        number = self._next
        self._next += 1
        future: asyncio.Future[Content | Fetch | Absent] = asyncio.get_running_loop().create_future()
        if not self._send(messages.Ask(number, key)):
            raise TrackerError(f"no tracker to ask for {key!r}")
        self._open[number] = key, future
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            raise TrackerError(f"no answer from the tracker within {timeout} s to {key!r}") from error
        finally:
            self._open.pop(number, None)

    def answered(self, message: Content | Fetch | Absent) -> None:
        """An answer came. A Fetch for which nobody waits any more is handed back: another node is to read it."""
        _, future = self._open.get(message.id, ("", None))
        if future is not None and not future.done():
            future.set_result(message)
        elif isinstance(message, Fetch):
            self._send(messages.Refuse(message.key, 0, final=False))

    def again(self) -> None:
        """A session has begun."""
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        for number, (key, future) in self._open.items():
            if not future.done():
                self._send(messages.Ask(number, key))

    def lost(self) -> None:
        """A session has ended; whoever waits is told after `HANDOVER` seconds, unless another one begins."""
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = asyncio.get_running_loop().call_later(HANDOVER, self._give_up)

    def give_up(self) -> None:
        """No session will come."""
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._give_up()

    def _give_up(self) -> None:
        self._giving_up = None
        for _, future in self._open.values():
            if not future.done():
                future.set_exception(TrackerError("the session with the tracker was lost"))
