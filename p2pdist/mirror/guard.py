"""What a client may do to a connection before it has asked for anything: how long, and how many bytes."""

from __future__ import annotations

import asyncio

from p2pdist.connections import Between
from p2pdist.mirror.app import MirrorCounts

MAX_HEAD = 64 * 1024  # bytes of one request, its head; aiohttp bounds each line, not how many there are


class Guard(Between):
    """Stands between a connection and the HTTP server's protocol for it, and passes everything on.

    The first request must be there in `seconds`, and each in `MAX_HEAD` bytes; else the connection is closed.
    """

    def __init__(
        self, inner: asyncio.Protocol, counts: MirrorCounts, open_: dict[object, Guard], seconds: float
    ) -> None:
        super().__init__(inner)
        self._counts = counts
        self._open = open_
        self._bytes = 0  # since the last request
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(seconds, self._late)

    def asked(self) -> None:
        """A request has come, whole."""
        self._bytes = 0
        self.done()

    def done(self) -> None:
        """No more waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self._transport is not None:
            self._counts.slow_connections += 1
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        self._open[self._inner] = self
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > MAX_HEAD and self._transport is not None:
            self._counts.large_requests += 1
            self._transport.abort()
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.done()
        self._open.pop(self._inner, None)
        super().connection_lost(exc)
