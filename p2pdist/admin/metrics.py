"""The metrics, and nothing else, on a port: for a Prometheus that runs on another host."""

from __future__ import annotations

from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from p2pdist.errors import OperationError


class MetricsServer:
    """Serves `GET /metrics` at `host:port` between `__aenter__` and `__aexit__`; port 0: any free one, see `port`.

    Raises OperationError when the address can't be listened on.
    """

    def __init__(self, host: str, port: int, metrics: CollectorRegistry) -> None:
        self.port = port
        self._host = host
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            raise OperationError(f"admin.metrics_port: {self._host}:{self.port}: {error.strerror}") from error
        self.port = runner.addresses[0][1]
        self._runner = runner
        return self

    async def __aexit__(self, *_: object) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": content_type})
