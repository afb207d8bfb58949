"""Links between replicas: what agents of one say goes to the one that leads, and its answers come back.

Everything said in one loop turn, to however many agents, leaves in one frame. A link that is lost loses what was on
it: agents say everything again, and questions are asked again for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import ClientWebSocketResponse, WSMsgType, web

from p2pdist.errors import ProtocolError
from p2pdist.protocol.messages import Banned, FromAgent, FromTracker
from tracker.replicas.election import RENEW, SILENT
from tracker.replicas.guests import Guest, Source
from tracker.replicas.leading import Leading
from tracker.replicas.wire import (
    Beat,
    Came,
    Elsewhere,
    End,
    Greet,
    Leads,
    Said,
    Tell,
    ToFollower,
    ToLeader,
    Went,
    decode_to_follower,
    decode_to_leader,
    frames,
)

Socket = web.WebSocketResponse | ClientWebSocketResponse
MOST_WAITING = 500_000  # messages for one link; then it is given up
SEND_TIMEOUT = 5.0  # seconds a frame may wait


class LinkLost(ConnectionError):
    """The link is no more; says why."""


class Line:
    """One end of a link: what is pushed leaves in order, batched."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._queue: list[ToLeader | ToFollower] = []
        self._wake = asyncio.Event()
        self._closed = ""
        self.sent = 0
        self.received = 0

    def push(self, message: ToLeader | ToFollower) -> None:
        """Send it with the next frame."""
        self._queue.append(message)
        self._wake.set()
        if len(self._queue) > MOST_WAITING:
            self.close("the other replica doesn't read")

    def wake(self) -> None:
        """There is something to `fill` in."""
        self._wake.set()

    def close(self, reason: str) -> None:
        """Give the link up."""
        self._closed = self._closed or reason
        self._queue.clear()
        self._wake.set()

    async def send_all(self, fill: Callable[[], None] = lambda: None) -> None:
        """Send until the link is lost: LinkLost. `fill` pushes what has been collected."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            fill()
            if self._closed:
                raise LinkLost(self._closed)
            batch, self._queue = self._queue, []
            self.sent += len(batch)
            for frame in frames(batch):
                try:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await self._socket.send_bytes(frame)
                except TimeoutError:
                    raise LinkLost("the other replica doesn't read") from None

    async def send(self, message: ToLeader | ToFollower) -> None:
        """Send one message now, before anything is pushed."""
        for frame in frames([message]):
            await self._socket.send_bytes(frame)

    async def receive(self, timeout: float | None) -> bytes:
        """The next frame. LinkLost, TimeoutError."""
        async with asyncio.timeout(timeout):
            frame = await self._socket.receive()
        if frame.type is not WSMsgType.BINARY:
            raise LinkLost("the other replica closed the link")
        data: bytes = frame.data
        return data

    async def beat(self, nodes: Callable[[], int]) -> None:
        """Say twice a second that this side is alive."""
        while True:
            self.push(Beat(nodes()))
            await asyncio.sleep(RENEW)


class Branch:
    """The leader's end of a link; the `Source` of the agents behind it."""

    def __init__(self, socket: web.WebSocketResponse, greet: Greet, leading: Leading) -> None:
        self.replica = greet.replica
        self.address = greet.address
        self.line = Line(socket)
        self._leading = leading
        self._said: dict[bytes, list[FromTracker]] = {}  # in this loop turn, by agent

    def tell(self, node: bytes, message: FromTracker) -> None:
        """See `Source`."""
        waiting = self._said.get(node)
        if waiting is not None:
            waiting.append(message)
            return
        self._said[node] = [message]
        self.line.wake()

    def end(self, node: bytes, reason: str) -> None:
        """See `Source`."""
        self._fill()
        self.line.push(End(node, reason))

    def _fill(self) -> None:
        said, self._said = self._said, {}
        for node, messages in said.items():
            self.line.push(Tell(node, messages))

    async def run(self) -> None:
        """Hear and answer until the link is lost: raises why (LinkLost, ProtocolError, TimeoutError...)."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.line.send_all(self._fill))
                tasks.create_task(self.line.beat(lambda: self._leading.nodes))
                tasks.create_task(self._hear())
        finally:
            self._leading.lost(self)

    async def _hear(self) -> None:
        while True:
            for message in decode_to_leader(await self.line.receive(SILENT * 3)):
                self.line.received += 1
                match message:
                    case Said():
                        self._leading.said(self, message.node, message.messages)
                    case Came():
                        self._leading.came(self, message.guest)
                    case Went():
                        self._leading.went(self, message.node)
                    case Beat():
                        pass
                    case _:
                        raise ProtocolError(f"{type(message).__name__} in the middle of a link")


class Relay:
    """The follower's end of a link; the `Voice` of its agents.

    `hear`: what the leader says of itself; `hear_ban`: whom it shuts out.
    """

    def __init__(
        self,
        socket: ClientWebSocketResponse,
        leads: Leads,
        source: Source,
        hear: Callable[[Leads], None],
        hear_ban: Callable[[Banned], None],
    ) -> None:
        self.leads = leads
        self.line = Line(socket)
        self.heard = asyncio.get_running_loop().time()  # the last frame
        self._source = source
        self._hear_leads = hear
        self._hear_ban = hear_ban
        self._nodes = 0

    @property
    def nodes(self) -> int:
        """See `Voice`."""
        return self._nodes

    def came(self, guest: Guest) -> None:
        """See `Voice`."""
        self.line.push(Came(guest))

    def said(self, node: bytes, messages: list[FromAgent]) -> None:
        """See `Voice`."""
        if messages:
            self.line.push(Said(node, messages))

    def went(self, node: bytes) -> None:
        """See `Voice`."""
        self.line.push(Went(node))

    async def run(self, own: Callable[[], int]) -> None:
        """Pass on until the link is lost: raises why. `own`: how many agents are here."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.line.send_all())
            tasks.create_task(self.line.beat(own))
            tasks.create_task(self._hear())

    async def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            frame = await self.line.receive(None)
            self.heard = loop.time()
            for message in decode_to_follower(frame):
                self.line.received += 1
                match message:
                    case Tell():
                        for one in message.messages:
                            if isinstance(one, Banned):
                                self._hear_ban(one)
                            self._source.tell(message.node, one)
                    case End():
                        self._source.end(message.node, message.reason)
                    case Beat():
                        self._nodes = message.nodes
                    case Leads():
                        self.leads = message
                        self._hear_leads(message)
                    case Elsewhere():
                        raise ProtocolError("Elsewhere in the middle of a link")
