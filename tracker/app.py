"""The tracker as a program: WebSocket sessions, health, metrics and status around the pure cluster.

async with RunningTracker(settings) as running:
    ... running.url ...
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from p2pdist import __version__
from p2pdist.errors import ConfigError, OperationError, StorageError
from p2pdist.pki import Role
from p2pdist.scope import Scope
from tracker.announce import AnnounceServer
from tracker.book import BanBook
from tracker.cluster import Cluster
from tracker.config import TrackerSettings
from tracker.desk import Desk, DeskPages
from tracker.enrol import MAX_BODY, Enrolment, open_authority
from tracker.enrol_kubernetes import ServiceAccounts
from tracker.keys import cluster_key
from tracker.replicas.leading import Leading
from tracker.report import metrics, status
from tracker.scraping import MetricsServer
from tracker.sessions import Members
from tracker.state import State, open_configured
from tracker.tokens import Facts
from tracker.visits import Visits
from tracker.webhooks import Webhooks

__all__ = ["RunningTracker", "TrackerSettings", "serve"]

log = structlog.get_logger()
_LOOK = 1.0  # seconds: how soon a token or ban from the command line is in force


class RunningTracker:
    """A tracker that listens while the context lasts. `url` is what agents are told.

    Raises (on entering):
        StorageError: the data directory or the cluster key can't be used.
        OperationError: the address can't be listened on.
    """

    def __init__(self, settings: TrackerSettings) -> None:
        self.settings = settings
        self.url = ""
        self.port = 0
        self.state: State  # while it listens
        self._stack = AsyncExitStack()
        self.trouble = ""  # why the state can't be reached

    async def __aenter__(self) -> Self:
        settings = self.settings
        self._members = Members(cluster_key(settings.data_directory), settings.membership_time)
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time() - self._loop.time()
        async with AsyncExitStack() as stack:
            self.state = open_configured(settings.state, settings.data_directory)
            stack.push_async_callback(self.state.close)
            self._facts = Facts(self.state)
            self.book = BanBook(self._facts)
            self.visits = Visits(settings, self._members, self._now, self._banned_until)
            self.leading = Leading(settings, self.cluster_key, self._epoch, self.book, self.state)
            stack.callback(self.leading.stop)
            self.visits.attach(self.leading.voice(self.visits))
            await self._look()
            self._enrolment = None if settings.insecure else await self._open_enrolment(stack)
            self._desk = Desk(self.state, settings.preheat, self._now, self.leading.orders.wake)
            self.hooks = Webhooks(settings.hooks, self._desk)
            tls = self._enrolment.credentials.server if self._enrolment is not None else None
            runner = web.AppRunner(self._application(), handle_signals=False, access_log=None, shutdown_timeout=2.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, ssl_context=tls)
            try:
                await site.start()
            except OSError as error:
                raise OperationError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}") from error
            stack.push_async_callback(self.visits.close)
            self.port = runner.addresses[0][1]
            self.scraped = await stack.enter_async_context(
                MetricsServer(settings.host, settings.metrics_port, self._render_metrics)
            )
            await stack.enter_async_context(self.hooks)
            self.announce = await stack.enter_async_context(AnnounceServer(settings.announce, self._now))
            stack.push_async_callback(self._look)  # the last bans
            self._scope = Scope()
            await self._scope.start()
            stack.push_async_callback(self._scope.stop)
            self._scope.spawn(self._watch())
            self._scope.spawn(self.leading.orders.run())
            self._stack = stack.pop_all()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"{'http' if settings.insecure else 'https'}://{host}:{self.port}"
        log.info("tracker listens", url=self.url, cluster_key=self._members.public.hex(), version=__version__)
        if settings.insecure:
            log.warning("insecure: nothing is encrypted, and whoever reaches this port is a member")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def cluster(self) -> Cluster:
        """The decisions, where this tracker leads."""
        return self.leading.cluster

    @property
    def cluster_key(self) -> bytes:
        """The public key that signs memberships (32 bytes)."""
        return self._members.public

    async def new_token(self, lifetime: float, uses: int | None = None) -> str:
        """A join token, in seconds; ConfigError without certificates, StorageError if it can't be kept."""
        if self._enrolment is None:
            raise ConfigError("an insecure tracker has no join tokens")
        return str(await self._enrolment.new_token(lifetime, uses))

    async def _open_enrolment(self, stack: AsyncExitStack) -> Enrolment:
        settings = self.settings
        authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
        accounts = await stack.enter_async_context(ServiceAccounts(settings.kubernetes))
        enrolment = Enrolment(authority, self._facts, settings.certificate_time, self._banned_until, accounts)
        enrolment.start()
        stack.callback(enrolment.stop)
        return enrolment

    def _banned_until(self, node: bytes) -> float | None:
        now = self._now()
        return self.book.until(now, node) or self.cluster.banned(now, node)

    def _now(self) -> float:
        """Unix time that never goes back."""
        return self._epoch + self._loop.time()

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        if self._enrolment is not None:
            app.middlewares.append(self._enrolment.members_only)
            self._enrolment.routes(app)
        DeskPages(self._desk, self._operator).routes(app)
        self.hooks.routes(app)
        app.router.add_get("/v1/session", self._session)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    # --- pages ---

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": __version__, "nodes": self.cluster.size})

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(status(self._now(), self.cluster, self.visits.names, self.visits.door.traffic))

    def _render_metrics(self) -> tuple[bytes, str]:
        return metrics(self.cluster, self.visits.door.traffic)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self._render_metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    # --- sessions ---

    def _member(self, request: web.Request) -> bytes | None:
        """The node that a session's certificate names; None where there are no certificates."""
        if self._enrolment is None:
            return None
        tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        node = self._enrolment.credentials.node(tls)
        if node is None:
            raise web.HTTPUnauthorized(text="a node's certificate is needed\n")
        return node

    def _operator(self, request: web.Request) -> str:
        """Who gives an order, by the certificate; everybody may where there are none."""
        if self._enrolment is None:
            return "anybody"
        identity = self._enrolment.member(request)
        if identity is None or identity.role is not Role.ADMIN:
            raise web.HTTPForbidden(
                text="an operator's certificate is needed: `p2pdist-tracker admin create` makes one\n"
            )
        return f"admin {identity.key.hex()[:16]}"

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        return await self.visits.receive(request, self._member(request))

    # --- what is kept ---

    async def _watch(self) -> None:
        """Take over what command lines and other replicas have changed; once a second, which costs one question."""
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self.book.noted.wait()
            except TimeoutError:
                pass
            await self._look()

    async def _look(self) -> None:
        try:
            changed = await self.book.sync(await self.state.version())
        except StorageError as error:
            if not self.trouble:
                log.error("the state can't be reached", error=str(error), bans_not_written=self.book.unwritten)
            self.trouble = str(error)
            return
        if self.trouble:
            log.info("the state can be reached again")
            self.trouble = ""
        if changed:
            self.leading.judge()


async def serve(settings: TrackerSettings, stop: asyncio.Event) -> None:
    """Run a tracker until `stop` is set."""
    async with RunningTracker(settings):
        await stop.wait()
