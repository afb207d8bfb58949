"""A port beside the tracker's: for those who are no members and need only these few pages."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiohttp import web

from p2pdist.errors import OperationError


class OwnPort:
    """Serves `app` at `host:port` while the context lasts. `refusal`: how the complaint about the address begins.

    Raises OperationError (on entering) when the address can't be listened on.
    """

    def __init__(self, app: web.Application, host: str, port: int, refusal: str, backlog: int = 128) -> None:
        self.port = port
        self._host = host
        self._refusal = refusal
        self._backlog = backlog
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port, backlog=self._backlog).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OperationError(f"{self._refusal}: {error.strerror}") from error
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
