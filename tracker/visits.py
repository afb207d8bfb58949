"""The sessions of this replica's agents, whoever decides for them: this replica itself, or the one that leads.

When that changes, each agent gets a new Welcome, upon which it says again what it holds and wants; questions that were
not answered yet are asked again for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog
from aiohttp import WSCloseCode, web

from p2pdist.errors import ProtocolError
from p2pdist.protocol import limits, messages
from p2pdist.protocol.messages import FromAgent, FromTracker
from tracker.config import TrackerSettings
from tracker.pace import Pace, units
from tracker.patience import Patience, Vigil
from tracker.replicas.guests import Voice
from tracker.sessions import PING, Door, Members, Session

log = structlog.get_logger()


class Visits:
    """It is the `Source` of its agents. `banned`: when a node may come back."""

    def __init__(
        self,
        settings: TrackerSettings,
        members: Members,
        now: Callable[[], float],
        banned: Callable[[bytes], float | None],
    ) -> None:
        self.voice: Voice | None = None
        self.ended = 0  # sessions since the start
        self._nodes = 0
        self._settings = settings
        self._vigil = Vigil(asyncio.get_running_loop(), settings.session_timeout, settings.send_timeout)
        self._sessions: dict[bytes, Session] = {}
        self.sockets: set[web.WebSocketResponse] = set()
        self.door = Door(settings, members, now, banned=banned, full=self._full)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def names(self) -> dict[bytes, str]:
        """What the nodes call themselves."""
        return {node: session.name for node, session in self._sessions.items()}

    @property
    def nodes(self) -> int:
        """How many agents the cluster has, or had when it was last known."""
        known = self.voice.nodes if self.voice is not None else 0
        if known:
            self._nodes = known
        return max(self._nodes, len(self._sessions))

    def _full(self, node: bytes) -> bool:
        return node not in self._sessions and len(self._sessions) >= self._settings.swarm.max_nodes

    def attach(self, voice: Voice | None) -> None:
        """From now on it decides; None: nobody does, for the moment."""
        self.voice = voice
        if voice is None:
            return
        for session in list(self._sessions.values()):
            self.door.welcome(session, voice.nodes, again=True)
            voice.came(session.guest)
            voice.said(session.peer.node, list(session.asks.values()))

    # --- what is said to agents ---

    def tell(self, node: bytes, message: FromTracker) -> None:
        """See `Source`."""
        session = self._sessions.get(node)
        if session is None:
            return
        session.push(message)
        if session.waiting > self._settings.send_queue:
            session.end("too many messages wait for it")
            self.door.traffic.slow += 1

    def end(self, node: bytes, reason: str) -> None:
        """See `Source`."""
        session = self._sessions.get(node)
        if session is not None:
            session.end(reason)

    def end_all(self, reason: str) -> None:
        """The agents are to find another tracker."""
        for session in list(self._sessions.values()):
            session.end(reason)

    async def close(self) -> None:
        """Close every session."""
        for socket in list(self.sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the tracker stops")

    # --- sessions ---

    async def receive(
        self, request: web.Request, member: bytes | None, labels: Mapping[str, str]
    ) -> web.WebSocketResponse:
        """One session, from its first byte to its last. `member`, `labels`: what the connection's certificate says."""
        socket = web.WebSocketResponse(max_msg_size=limits.MAX_TRACKER_FRAME, compress=False, autoping=True)
        await socket.prepare(request)
        self.sockets.add(socket)
        address = request.remote or ""
        try:
            admitted = await self.door.admit(socket, address, member, labels)
            if admitted is not None:
                await self._converse(socket, *admitted)
        except TimeoutError:
            log.info("session dropped: silent", address=address)
            self.door.traffic.silent += 1
        except ProtocolError as error:
            log.warning("session dropped: malformed", address=address, error=str(error))
        except ConnectionError as error:
            log.info("session lost", address=address, error=str(error))
        finally:
            self.sockets.discard(socket)
            await socket.close()
        return socket

    async def _converse(self, socket: web.WebSocketResponse, session: Session, first: list[FromAgent]) -> None:
        node = session.peer.node
        older = self._sessions.get(node)
        if older is not None:
            older.end("the node began another session")
        self._sessions[node] = session
        self.door.welcome(session, self.nodes)
        if self.voice is not None:
            self.voice.came(session.guest)
        log.info("agent joined", node=node.hex()[:16], name=session.name, address=session.address)
        reason = "it went away"

        def over(silent: bool) -> None:
            nonlocal reason
            reason = self._lost_patience(silent)
            sender.cancel()

        patience = self._vigil.watch(over)
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(session.send_all(patience, self.door.traffic))
                reader = tasks.create_task(self._read(socket, session, first, patience))
                done, _ = await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
                ended = (task for task in done if not task.cancelled() and task.exception() is None)
                reason = next((task.result() for task in ended), reason)
                sender.cancel()
                reader.cancel()
        except ExceptionGroup as group:
            expected, other = group.split((ProtocolError, ConnectionError))
            if other is not None or expected is None:
                raise
            reason = str(expected.exceptions[0]) or type(expected.exceptions[0]).__name__
        finally:
            patience.stop()
            if self._sessions.get(node) is session:
                del self._sessions[node]
                if self.voice is not None:
                    self.voice.went(node)
            self.ended += 1
            log.info("agent left", node=node.hex()[:16], name=session.name, reason=reason)

    def _lost_patience(self, silent: bool) -> str:
        if silent:
            self.door.traffic.silent += 1
            return f"it was silent for {self._settings.session_timeout} s"
        self.door.traffic.slow += 1
        return "it doesn't read what it is sent"

    async def _listens_on(self, session: Session, wait: float) -> bool:
        """Make an agent that says too much wait, so that its own connection fills; False: it doesn't care."""
        if wait <= 0:
            return True
        if wait <= self._settings.message_patience:
            self.door.traffic.delayed += 1
            await asyncio.sleep(wait)
            return True
        self.door.traffic.flooding += 1
        session.push(messages.Rejected(f"more than {self._settings.message_rate} messages a second (message_rate)"))
        await asyncio.sleep(self._settings.send_timeout)  # the session ends when that is sent
        return False

    async def _read(
        self, socket: web.WebSocketResponse, session: Session, frame: list[FromAgent] | None, patience: Patience
    ) -> str:
        node, loop = session.peer.node, asyncio.get_running_loop()
        pace = Pace(self._settings.message_rate, self._settings.message_burst, loop.time())
        while frame is not None:
            if self._sessions.get(node) is not session:  # another session of this node took over
                break
            session.hold()
            self._heard(session, frame)
            await session.flush(patience, self.door.traffic)
            if not await self._listens_on(session, pace.take(1.0 if frame is PING else units(frame), loop.time())):
                return "it says too much"
            frame = await self.door.receive(socket)
            patience.heard()
        return "it closed the session"

    def _heard(self, session: Session, frame: list[FromAgent]) -> None:
        """Pings are answered here: this replica is there, whatever becomes of the one that leads."""
        said: list[FromAgent] = []
        if frame is not PING:
            said += [message for message in frame if not isinstance(message, messages.Ping)]
        for message in said:
            if isinstance(message, messages.Ask):
                session.asked(message)
        if said and self.voice is not None:
            self.voice.said(session.peer.node, said)
        if len(said) < len(frame):
            nodes = self.nodes
            self.door.welcome(session, nodes)
            session.push(messages.Pong(nodes))
