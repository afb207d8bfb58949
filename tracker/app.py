"""The tracker as a program: WebSocket sessions, health, metrics and status around the pure cluster.

async with RunningTracker(settings) as running:
    ... running.url ...
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from p2pdist import __version__
from p2pdist.errors import ConfigError, OperationError, StorageError
from p2pdist.pki import Authority, Role
from p2pdist.scope import Scope
from tracker.announce import AnnounceServer
from tracker.authority import AuthorityFiles, open_authority
from tracker.book import BanBook
from tracker.cluster import Cluster
from tracker.config import TrackerSettings
from tracker.desk import Desk, DeskPages
from tracker.doorstep import HANDSHAKE, Doorstep
from tracker.enrol import MAX_BODY, Enrolment
from tracker.enrol_kubernetes import ServiceAccounts
from tracker.guesses import Guesses
from tracker.keys import cluster_key, derived_key
from tracker.lag import Lag
from tracker.leftovers import Leftovers
from tracker.pages import Pages
from tracker.replicas.dialling import PATH
from tracker.replicas.election import Memory, replica_id
from tracker.replicas.leading import Leading
from tracker.replicas.replica import ThisReplica
from tracker.replicas.wire import MAX_FRAME
from tracker.report import Standing
from tracker.scraping import MetricsServer
from tracker.sessions import Members
from tracker.state import State, open_configured
from tracker.state.reach import Reach
from tracker.tokens import Facts
from tracker.visits import Visits
from tracker.webhooks import Webhooks

__all__ = ["RunningTracker", "TrackerSettings", "serve"]

log = structlog.get_logger()
_SETTLE = 4.0  # seconds that the start waits for a leader to be found
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
        self.reach = Reach()

    async def __aenter__(self) -> Self:
        settings = self.settings
        if settings.state.url and not (settings.authority_directory or settings.data_directory):
            raise ConfigError(
                "state.url: replicas need the same keys: name the authority_directory that all of them have"
            )
        authority = None
        if settings.authority_directory or not settings.insecure:
            authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
        shared = authority is not None and bool(settings.authority_directory)
        key = derived_key(authority) if authority and shared else cluster_key(settings.data_directory)
        self._members = Members(key, settings.membership_time)
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time() - self._loop.time()
        self._lag = Lag(self._loop.time())
        self._leftovers = Leftovers(self._loop.time(), gc.collect)
        async with AsyncExitStack() as stack:
            self.state = open_configured(settings.state, settings.data_directory)
            stack.push_async_callback(self.state.close)
            self._facts = Facts(self.state)
            self.book = BanBook(self._facts)
            self.visits = Visits(settings, self._members, self._now, self._banned_until)
            self._enrolment = None
            self._files: AuthorityFiles | None = None
            if authority is not None and not settings.insecure:
                self._files = AuthorityFiles(settings.data_directory, settings.authority_directory, authority)
                self._enrolment = await self._open_enrolment(stack, authority)
            tls = self._enrolment.credentials if self._enrolment is not None else None
            self._scope = Scope()
            await self._scope.start()
            stack.push_async_callback(self._scope.stop)
            self.replica = ThisReplica(
                Memory(replica_id(self.cluster_key, authority.cluster.encode() if authority is not None else b"")),
                self.state,
                self.reach,
                self.visits,
                self._begin,
                tls.client if tls is not None else None,
                self._scope,
                lambda message: self.book.hear(self._now(), message.node, message.until),
            )
            self._desk = Desk(self.state, settings.preheat, self._now, self.replica.wake_orders)
            self.hooks = Webhooks(settings.hooks, self._desk)
            self._pages = Pages(self._now, self.replica, self.visits, self.reach, self.book, self._lag, self._enrolment)
            runner = web.AppRunner(
                self._application(),
                handle_signals=False,
                access_log=None,
                shutdown_timeout=2.0,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            server = tls.server if tls is not None else None
            assert runner.server is not None
            step = Doorstep(
                runner.server, lambda: len(self.visits.sockets), settings.max_strangers, self.visits.door.traffic
            )
            try:
                listener = await self._loop.create_server(
                    step,
                    settings.host,
                    settings.port,
                    backlog=1024,
                    ssl=server,
                    ssl_handshake_timeout=HANDSHAKE if server is not None else None,
                )
            except OSError as error:
                raise OperationError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}") from error
            stack.callback(listener.close)
            stack.push_async_callback(self.visits.close)
            self.port = listener.sockets[0].getsockname()[1]
            self.scraped = await stack.enter_async_context(
                MetricsServer(settings.host, settings.metrics_port, self._pages.render_metrics)
            )
            await stack.enter_async_context(self.hooks)
            self.announce = await stack.enter_async_context(AnnounceServer(settings.announce, self._now))
            await self._look()
            await self._take_part(stack)
            self._scope.spawn(self._watch())
            stack.push_async_callback(self._look)  # the last bans
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

    async def _take_part(self, stack: AsyncExitStack) -> None:
        """Lead alone, or find out who does; a tracker that finds nobody, and no state, leads after a while."""
        if not self.settings.state.url:
            self.replica.lead_alone()
            stack.push_async_callback(self.replica.leave)
            return
        self.replica.memory.address = self.settings.state.reached_at(self.settings.host, self.port)
        task = self._scope.spawn(self.replica.run())
        stack.push_async_callback(_end, task)
        try:
            async with asyncio.timeout(_SETTLE):
                await self.replica.settled.wait()
        except TimeoutError:
            log.error("no replica of this tracker leads yet")
        if self.replica.foreign:
            raise ConfigError(
                f"the tracker that leads, at {self.replica.foreign}, has other keys: give all replicas the same "
                "authority_directory, and another cluster another state.prefix"
            )

    def _begin(self) -> Leading:
        return Leading(self.settings, self.cluster_key, self._epoch, self.book, self.state)

    @property
    def leading(self) -> Leading | None:
        """The decisions, where this replica makes them."""
        return self.replica.leading

    @property
    def cluster(self) -> Cluster:
        """The decisions, where this replica makes them; OperationError elsewhere."""
        if self.replica.leading is None:
            raise OperationError("another replica leads")
        return self.replica.leading.cluster

    @property
    def cluster_key(self) -> bytes:
        """The public key that signs memberships (32 bytes)."""
        return self._members.public

    async def new_token(self, lifetime: float, uses: int | None = None) -> str:
        """A join token, in seconds; ConfigError without certificates, StorageError if it can't be kept."""
        if self._enrolment is None:
            raise ConfigError("an insecure tracker has no join tokens")
        return str(await self._enrolment.new_token(lifetime, uses))

    async def _open_enrolment(self, stack: AsyncExitStack, authority: Authority) -> Enrolment:
        settings = self.settings
        accounts = await stack.enter_async_context(ServiceAccounts(settings.kubernetes))
        guesses = Guesses(settings.wrong_tokens_per_address, settings.wrong_tokens, self._loop.time())
        enrolment = Enrolment(authority, self._facts, settings.certificate_time, self._banned_until, accounts, guesses)
        enrolment.start()
        stack.callback(enrolment.stop)
        return enrolment

    def _banned_until(self, node: bytes) -> float | None:
        now, leading = self._now(), self.replica.leading
        return self.book.until(now, node) or (leading.cluster.banned(now, node) if leading is not None else None)

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
        app.router.add_get(PATH, self._link)
        self._pages.routes(app)
        return app

    @property
    def standing(self) -> Standing:
        """This replica among the others."""
        return self._pages.standing

    # --- sessions ---

    def _member(self, request: web.Request) -> tuple[bytes | None, Mapping[str, str]]:
        """The node that a session's certificate names, and its labels; None where there are no certificates."""
        if self._enrolment is None:
            return None, {}
        tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        identity = self._enrolment.credentials.identify(tls)
        if identity is None or identity.role is not Role.NODE:
            raise web.HTTPUnauthorized(text="a node's certificate is needed\n")
        return identity.key, identity.labels

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
        member, labels = self._member(request)
        if self.replica.orphaned:
            raise web.HTTPServiceUnavailable(text="no replica of this tracker leads; ask another one\n")
        return await self.visits.receive(request, member, labels)

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        """Another replica's."""
        if self._enrolment is not None:
            identity = self._enrolment.member(request)
            if identity is None or identity.role is not Role.TRACKER:
                raise web.HTTPForbidden(text="only replicas of this tracker get here\n")
        socket = web.WebSocketResponse(max_msg_size=MAX_FRAME, compress=False)
        await socket.prepare(request)
        self.visits.sockets.add(socket)
        try:
            await self.replica.greeted(socket)
        finally:
            self.visits.sockets.discard(socket)
            await socket.close()
        return socket

    # --- what is kept ---

    async def _watch(self) -> None:
        """Take over what command lines and other replicas have changed; once a second, which costs one question."""
        while True:
            due = time.monotonic() + _LOOK
            try:
                async with asyncio.timeout(_LOOK):
                    await self.book.noted.wait()
            except TimeoutError:
                self._lag.saw(self._loop.time(), time.monotonic() - due)
            self._leftovers.look(self._loop.time(), self.visits.ended, len(self.visits))
            changed = self._files.look(self._loop.time()) if self._files is not None else None
            if changed is not None and self._enrolment is not None:
                self._enrolment.change(changed)
            await self._look()

    async def _look(self) -> None:
        try:
            changed = await self.book.sync(await self.state.version())
        except StorageError as error:
            self.reach.failed(error)
            return
        self.reach.answered()
        if changed and self.leading is not None:
            self.leading.judge()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def serve(settings: TrackerSettings, stop: asyncio.Event) -> None:
    """Run a tracker until `stop` is set."""
    async with RunningTracker(settings):
        await stop.wait()
