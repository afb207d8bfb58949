"""What stands between a connection and aiohttp's server, for whoever has to bound strangers or hush what they send."""

from __future__ import annotations

import asyncio
import logging

import structlog
from aiohttp import web


class Connection(web.RequestHandler):
    """What can't be read isn't said again, to whoever asked or in a log: it may hold a password."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp."""
        return super().handle_error(request, status, exc, "the request can't be read" if status < 500 else message)


class HttpLog(logging.Logger):
    """What aiohttp has to say of requests that are no HTTP: one line, without the bytes, which may be a password."""

    def __init__(self, name: str) -> None:
        super().__init__(name, logging.INFO)
        self._lines = structlog.get_logger(name)

    def isEnabledFor(self, level: int) -> bool:
        """Warnings and worse."""
        return level > logging.INFO

    def handle(self, record: logging.LogRecord) -> None:
        """See `logging`."""
        kind = record.exc_info[0] if record.exc_info else None
        self._lines.info("request dropped", why=kind.__name__ if kind else record.msg)


class Between(asyncio.Protocol):
    """Passes everything on between a connection and the HTTP server's protocol for it."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        """See `asyncio.Protocol`, as all that follow."""
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._inner.data_received(data)

    def step_aside(self) -> None:
        """From now on bytes go straight to the server's protocol; to be called when some have come.

        A tracker's thousands of agents say little at a time: what each frame passes through is what it costs.
        """
        self.data_received = self._inner.data_received  # type: ignore[method-assign]  # for this connection only
        if self._transport is not None:
            self._transport.set_protocol(self)  # uvloop looks the method up once

    def eof_received(self) -> bool | None:
        """No more will."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The other side takes no more for now."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._transport = None
        self._inner.connection_lost(exc)


class Refused(asyncio.Protocol):
    """There are as many connections as may be."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        """Closed at once."""
        transport.abort()
