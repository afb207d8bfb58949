"""Connections that are no session: how many at once, and for how long. Whoever says nothing must not shut out others.

Behind TLS these are all who complete a handshake: a certificate isn't needed for enrolment and health.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from p2pdist.connections import Between, Connection, HttpLog, Refused
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
        self._log = HttpLog("tracker")
        self._sessions = sessions
        self._most = most
        self.traffic = traffic
        self.patience = patience
        self.stay = stay
        self.connections: set[_Guard] = set()

    def __call__(self) -> asyncio.Protocol:
        if len(self.connections) - self._sessions() >= self._most:
            self.traffic.crowded += 1
            return Refused()
        connection = Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none: the documented meaning, which its annotation forgot
            logger=self._log,
            keepalive_timeout=KEEP_ALIVE,
        )
        return _Guard(connection, self)


class _Guard(Between):
    """Ends a connection that asks for nothing, or stays without asking for a WebSocket."""

    def __init__(self, inner: asyncio.Protocol, step: Doorstep) -> None:
        super().__init__(inner)
        self._step = step
        self._head = bytearray()
        self._settled = False  # a whole head came, and it asks for a WebSocket
        self._asked = False
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
        self._step.connections.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end >= 0:
                self._asked = True
                self._settled = b"\r\nupgrade: websocket" in self._head[:end].lower()
                self._head.clear()
                self.step_aside()
            elif len(self._head) > MAX_HEAD:
                self._close()
                return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._step.connections.discard(self)
        super().connection_lost(exc)
