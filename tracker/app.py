"""The tracker as a program: WebSocket sessions, health, metrics and status around the pure cluster.

async with RunningTracker(settings) as running:
    ... running.url ...
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from aiohttp import WSCloseCode, web

from p2pdist import __version__
from p2pdist.errors import ConfigError, OperationError, ProtocolError, StorageError
from p2pdist.protocol import limits, messages
from p2pdist.protocol.messages import FromAgent
from tracker.announce import AnnounceServer
from tracker.cluster import Cluster
from tracker.config import TrackerSettings
from tracker.enrol import MAX_BODY, Enrolment, open_authority
from tracker.keys import cluster_key
from tracker.report import metrics, status
from tracker.sessions import Door, Members, Session
from tracker.state import LocalState, State
from tracker.timers import Outbox
from tracker.tokens import Ban, Facts

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
        self._sessions: dict[bytes, Session] = {}
        self._sockets: set[web.WebSocketResponse] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle
        self._kept: dict[bytes, float] = {}  # bans that are written down: until when

    async def __aenter__(self) -> Self:
        settings = self.settings
        self._members = Members(cluster_key(settings.data_directory), settings.membership_time)
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time() - self._loop.time()
        self.cluster = Cluster(
            settings.swarm, settings.content, settings.bans, random.Random(), self._now(), self.cluster_key
        )
        self._door = Door(
            settings,
            self._members,
            self._now,
            banned=lambda node: self.cluster.banned(self._now(), node),
            full=lambda node: node not in self._sessions and len(self._sessions) >= settings.swarm.max_nodes,
        )
        directory = settings.data_directory
        async with AsyncExitStack() as stack:
            self._facts = Facts(Path(directory) if directory else None)
            stack.callback(self._facts.close)
            self.state = LocalState.open(Path(directory) if directory else None)
            stack.push_async_callback(self.state.close)
            self._enrolment = None if settings.insecure else self._open_enrolment(stack)
            tls = self._enrolment.credentials.server if self._enrolment is not None else None
            runner = web.AppRunner(self._application(), handle_signals=False, access_log=None, shutdown_timeout=2.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, settings.host, settings.port, backlog=1024, ssl_context=tls)
            try:
                await site.start()
            except OSError as error:
                raise OperationError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}") from error
            stack.push_async_callback(self._close_sessions)
            self.port = runner.addresses[0][1]
            self.announce = await stack.enter_async_context(AnnounceServer(settings.announce, self._now))
            self._look_at_facts()
            stack.callback(self._stop_looking)
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
        if self._timer is not None:
            self._timer.cancel()

    @property
    def cluster_key(self) -> bytes:
        """The public key that signs memberships (32 bytes)."""
        return self._members.public

    def new_token(self, lifetime: float, uses: int | None = None) -> str:
        """A join token, in seconds; ConfigError without certificates."""
        if self._enrolment is None:
            raise ConfigError("an insecure tracker has no join tokens")
        return str(self._enrolment.new_token(lifetime, uses))

    def _open_enrolment(self, stack: AsyncExitStack) -> Enrolment:
        settings = self.settings
        authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
        enrolment = Enrolment(authority, self._facts, settings.certificate_time, self._banned_until)
        enrolment.start()
        stack.callback(enrolment.stop)
        return enrolment

    def _banned_until(self, node: bytes) -> float | None:
        return self.cluster.banned(self._now(), node)

    def _now(self) -> float:
        """Unix time that never goes back."""
        return self._epoch + self._loop.time()

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        if self._enrolment is not None:
            app.middlewares.append(self._enrolment.members_only)
            self._enrolment.routes(app)
        app.router.add_get("/v1/session", self._session)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _close_sessions(self) -> None:
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the tracker stops")

    # --- pages ---

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "version": __version__, "nodes": self.cluster.size})

    async def _status(self, request: web.Request) -> web.Response:
        names = {node: session.name for node, session in self._sessions.items()}
        return web.json_response(status(self._now(), self.cluster, names, self._door.traffic))

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = metrics(self.cluster, self._door.traffic)
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

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=limits.MAX_TRACKER_FRAME, compress=False, autoping=True)
        member = self._member(request)
        await socket.prepare(request)
        self._sockets.add(socket)
        address = request.remote or ""
        try:
            admitted = await self._door.admit(socket, address, member)
            if admitted is not None:
                await self._converse(socket, *admitted)
        except TimeoutError:
            log.info("session dropped: silent", address=address)
            self._door.traffic.silent += 1
        except ProtocolError as error:
            log.warning("session dropped: malformed", address=address, error=str(error))
        except ConnectionError as error:
            log.info("session lost", address=address, error=str(error))
        finally:
            self._sockets.discard(socket)
            await socket.close()
        return socket

    async def _converse(self, socket: web.WebSocketResponse, session: Session, first: list[FromAgent]) -> None:
        node = session.peer.node
        older = self._sessions.get(node)
        if older is not None:
            older.end("the node began another session")
        self._sessions[node] = session
        self._door.welcome(session, self.cluster.size + (older is None))
        self._dispatch(self.cluster.connected(self._now(), session.peer, session.address))
        log.info("agent joined", node=node.hex()[:16], name=session.name, address=session.address)
        reason = "it went away"
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(session.send_all(self.settings, self._door.traffic))
                reader = tasks.create_task(self._read(socket, session, first))
                done, _ = await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
                reason = next((task.result() for task in done if task.exception() is None), reason)
                sender.cancel()
                reader.cancel()
        except ExceptionGroup as group:
            expected, other = group.split((ProtocolError, TimeoutError, ConnectionError))
            if other is not None or expected is None:
                raise
            reason = self._why(expected.exceptions[0])
        finally:
            if self._sessions.get(node) is session:
                del self._sessions[node]
                self._dispatch(self.cluster.disconnected(self._now(), node))
            log.info("agent left", node=node.hex()[:16], name=session.name, reason=reason)

    def _why(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            self._door.traffic.silent += 1
            return f"it was silent for {self.settings.session_timeout} s"
        return str(error) or type(error).__name__

    async def _read(self, socket: web.WebSocketResponse, session: Session, frame: list[FromAgent] | None) -> str:
        node = session.peer.node
        while frame is not None:
            if self._sessions.get(node) is not session:  # another session of this node took over
                break
            out: Outbox = []
            now = self._now()
            for message in frame:
                out += self.cluster.handle(now, node, message)
                if isinstance(message, messages.Ping):
                    self._door.welcome(session, self.cluster.size)
            self._dispatch(out)
            async with asyncio.timeout(self.settings.session_timeout):
                frame = await self._door.receive(socket)
        return "it closed the session"

    def _dispatch(self, out: Outbox) -> None:
        for node, message in out:
            session = self._sessions.get(node)
            if session is None:
                continue
            session.push(message)
            if isinstance(message, messages.Banned):
                self._keep_ban(message)
            if session.waiting > self.settings.send_queue:
                session.end("too many messages wait for it")
                self._door.traffic.slow += 1
        self._set_timer()

    # --- what is kept ---

    def _keep_ban(self, message: messages.Banned) -> None:
        """What nodes said has shut one out: that must survive us."""
        found = self.cluster.bans.sentence(self._now(), message.node)
        if found is not None and self._kept.get(message.node) != found.until:
            self._kept[message.node] = found.until
            try:
                self._facts.ban(Ban(message.node, found.until, found.reason, found.evidence))
            except StorageError as error:  # in force it is all the same, until this tracker stops
                log.error("a ban can't be written down", node=message.node.hex()[:16], error=str(error))

    def _stop_looking(self) -> None:
        self._looking.cancel()

    def _look_at_facts(self) -> None:
        """Take over what the command line has changed; once a second, which costs one look at a counter."""
        self._looking = self._loop.call_later(_LOOK, self._look_at_facts)
        if not self._facts.changed():
            return
        now = self._now()
        kept, active = self._facts.bans(now), self.cluster.bans.active(now)
        self._kept = {node: ban.until for node, ban in kept.items()}
        out: Outbox = []
        for node, ban in kept.items():
            if active.get(node) != ban.until:
                out += self.cluster.ban(now, node, ban.until, ban.reason, ban.evidence)
        for node in active.keys() - kept.keys():
            out += self.cluster.lift(now, node)
        self._dispatch(out)

    def _set_timer(self) -> None:
        deadline = self.cluster.next_deadline()
        if deadline is None:
            return
        when = deadline - self._epoch
        if self._timer is not None:
            if self._timer.when() <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._dispatch(self.cluster.tick(self._now()))


async def serve(settings: TrackerSettings, stop: asyncio.Event) -> None:
    """Run a tracker until `stop` is set."""
    async with RunningTracker(settings):
        await stop.wait()
