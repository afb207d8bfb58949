"""The mirror's listening socket: started, and stopped so that what is being served is finished first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from p2pdist.connections import Connection, HttpLog, Refused
from p2pdist.errors import ConfigError
from p2pdist.mirror.app import MIRROR, Mirror, MirrorCounts, OnServed, app
from p2pdist.mirror.encryption import MirrorTls
from p2pdist.mirror.guard import Guard
from p2pdist.mirror.settings import MirrorSettings
from p2pdist.mirror.source import Source

_WAITING_SHARE = 0.8  # of the time to stop: until then also what has not begun to be served may still begin
_LAST_MOMENT = 0.05  # seconds for cancelled handlers; aiohttp takes 0 for "for ever"
BACKLOG = 1024
HANDSHAKE = 10.0  # seconds that a client has for its TLS handshake
KEEP_ALIVE = 300.0  # seconds that an idle connection stays open


class MirrorServer:
    """Serves `source` at `host`:`port` while it is entered.

    Leaving takes at most `settings.stop` seconds: no new connection; idle ones are closed; bodies on their way go on;
    after four fifths of the time what still waits for its blob is answered 404, at the end the rest is cut.

    Raises (entering):
        ConfigError: it can't listen there.
    """

    def __init__(
        self,
        source: Source,
        settings: MirrorSettings,
        *,
        host: str = "127.0.0.1",
        port: int = 5050,
        on_served: OnServed | None = None,
        clock: Callable[[], float] = time.monotonic,
        tls: MirrorTls | None = None,
    ) -> None:
        self.counts = MirrorCounts()
        self._tls = tls
        self._source = source
        self._settings = settings
        self._on_served = on_served
        self._clock = clock
        self.host = host
        self.port = port  # 0: any; the real one once it is entered
        self._runner: web.AppRunner | None = None
        self._mirror: Mirror | None = None
        self._listener: asyncio.Server | None = None
        self._guards: dict[object, Guard] = {}
        self._log = HttpLog("p2pdist.mirror")

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._runner.server.connections) if self._runner is not None and self._runner.server else 0

    async def __aenter__(self) -> Self:
        application = app(self._source, self._settings, on_served=self._on_served, clock=self._clock)
        runner = web.AppRunner(
            application,
            handler_cancellation=True,
            shutdown_timeout=_LAST_MOMENT,
        )
        await runner.setup()
        self._runner, self._mirror = runner, application[MIRROR]
        self._mirror.on_request = self._asked
        self._mirror.counts = self.counts
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._accept,
                self.host,
                self.port,
                backlog=BACKLOG,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=HANDSHAKE if self._tls is not None else None,
            )
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"can't listen on {self.host}:{self.port} for the daemons (mirror.port): {error.strerror or error}"
            ) from error
        except BaseException:
            await runner.cleanup()
            raise
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def _accept(self) -> asyncio.BaseProtocol:
        assert self._runner is not None and self._runner.server is not None
        if self._tls is not None:
            self._tls.look(self._clock())
        if self.connections >= self._settings.max_connections:
            self.counts.refused_connections += 1
            return Refused()
        connection = Connection(
            self._runner.server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none: the documented meaning, which its annotation forgot
            logger=self._log,
            lingering_time=1.0,
            keepalive_timeout=KEEP_ALIVE,
        )
        return Guard(connection, self.counts, self._guards, self._settings.head)

    def _asked(self, request: web.Request) -> None:
        guard = self._guards.get(request.protocol)
        if guard is not None:
            guard.asked()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        runner, mirror = self._runner, self._mirror
        if runner is None or mirror is None:
            return
        self._runner = self._mirror = None
        try:
            if self._listener is not None:
                self._listener.close()
            mirror.stopping = True
            if runner.server is not None:
                runner.server.pre_shutdown()
            if not await _within(self._settings.stop * _WAITING_SHARE, mirror):
                mirror.deadlines.end()
                await _within(self._settings.stop * (1 - _WAITING_SHARE), mirror)
        finally:
            for guard in list(self._guards.values()):
                guard.done()
            await runner.cleanup()


async def _within(seconds: float, mirror: Mirror) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await mirror.quiet()
    except TimeoutError:
        return False
    return True
