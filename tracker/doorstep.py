"""Connections that are no session: how many at once, and for how long. Whoever says nothing must not shut out others.

Behind TLS these are all who complete a handshake: a certificate isn't needed for enrolment and health.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import structlog
from aiohttp import web

from tracker.sessions import Traffic

HANDSHAKE = 30.0  # seconds for TLS: five hundred nodes may enrol at once
PATIENCE = 30.0  # seconds for the head of the first request
STAY = 120.0  # seconds after which a connection that asked for no WebSocket is closed, whatever it does
KEEP_ALIVE = 30.0  # seconds that it may be idle
MAX_HEAD = 64 * 1024  # bytes


class Doorstep:
    """Makes the protocol of each new connection: `server`'s, guarded. `sessions` counts those that may stay."""

    def __init__(
        self,
        server: web.Server,
        sessions: Callable[[], int],
        most: int,
        traffic: Traffic,
        *,
        patience: float = PATIENCE,
        stay: float = STAY,
    ) -> None:
        self._server = server
        self._log = _HttpLog()
        self._sessions = sessions
        self._most = most
        self.traffic = traffic
        self.patience = patience
        self.stay = stay
        self.connections: set[_Guard] = set()

    def __call__(self) -> asyncio.Protocol:
        if len(self.connections) - self._sessions() >= self._most:
            self.traffic.crowded += 1
            return _Refused()
        connection = _Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none: the documented meaning, which its annotation forgot
            logger=self._log,
            keepalive_timeout=KEEP_ALIVE,
        )
        return _Guard(connection, self)


class _Connection(web.RequestHandler):
    """What can't be read isn't said again, to whoever asked or in a log: it may hold a password."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        return super().handle_error(request, status, exc, "the request can't be read" if status < 500 else message)


class _HttpLog(logging.Logger):
    """What aiohttp has to say of requests that are no HTTP: one line, without their bytes."""

    def __init__(self) -> None:
        super().__init__("tracker.http", logging.INFO)
        self._lines = structlog.get_logger("tracker")

    def isEnabledFor(self, level: int) -> bool:
        return level > logging.INFO

    def handle(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        self._lines.info("request dropped", why=kind.__name__ if kind else record.msg)


class _Guard(asyncio.Protocol):
    """Passes everything on between a connection and the HTTP server's protocol for it."""

    def __init__(self, inner: asyncio.Protocol, step: Doorstep) -> None:
        self._inner = inner
        self._step = step
        self._head = bytearray()
        self._settled = False  # a whole head came, and it asks for a WebSocket
        self._asked = False
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(step.patience, self._look, False),
            loop.call_later(step.stay, self._look, True),
        ]

    def _look(self, long: bool) -> None:
        if self._transport is not None and not self._settled and (long or not self._asked):
            self._close()

    def _close(self) -> None:
        self._step.traffic.crowded += 1
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        self._transport = transport
        self._step.connections.add(self)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end >= 0:
                self._asked = True
                self._settled = b"\r\nupgrade: websocket" in self._head[:end].lower()
                self._head.clear()
            elif len(self._head) > MAX_HEAD:
                self._close()
                return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._transport = None
        self._step.connections.discard(self)
        self._inner.connection_lost(exc)


class _Refused(asyncio.Protocol):
    """There are as many as may be."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        transport.abort()
