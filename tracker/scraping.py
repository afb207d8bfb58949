"""The metrics, and nothing else, on a port of their own: for a Prometheus that is no member of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from tracker.ownport import OwnPort


class MetricsServer:
    """Serves `GET /metrics` at `host:port` while the context lasts; `port` 0: not at all.

    `render`: the metrics and their content type. Raises OperationError when the address can't be listened on.
    """

    def __init__(self, host: str, port: int, render: Callable[[], tuple[bytes, str]]) -> None:
        self._host = host
        self._port = port
        self._render = render
        self._own: OwnPort | None = None

    async def __aenter__(self) -> Self:
        if not self._port:
            return self
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._answer)
        self._own = await OwnPort(app, self._host, self._port, f"metrics_port: {self._host}:{self._port}").__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            await self._own.__aexit__(kind, error, trace)

    async def _answer(self, request: web.Request) -> web.Response:
        body, content_type = self._render()
        return web.Response(body=body, headers={"Content-Type": content_type})
