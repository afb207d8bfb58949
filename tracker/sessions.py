"""Agents' sessions: one WebSocket each, frames in, frames out, nothing unbounded.

The tracker says Challenge, the agent Hello with a proof of its key, the tracker Welcome. From then on what an agent
says is handed to the cluster, and what the cluster has to say leaves in one frame per loop turn and agent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import structlog
from aiohttp import WSMsgType, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import ProtocolError
from p2pdist.protocol import attest, limits, messages
from p2pdist.protocol.messages import (
    Absent,
    Ask,
    Content,
    Fetch,
    FromAgent,
    FromTracker,
    Hello,
    Membership,
    PeerInfo,
    Ping,
)
from tracker.config import TrackerSettings
from tracker.patience import Patience
from tracker.replicas.guests import Guest

log = structlog.get_logger()

MAX_ASKS = 1024  # unanswered questions of one agent that are remembered
ANSWERS = (Content, Fetch, Absent)
MAX_LABELS = 32  # as `messages.Labels` has it
PING: list[FromAgent] = [Ping()]  # what most frames of idle agents are; not to be changed
_PING = messages.encode(PING)
FRAME_MESSAGES = 64  # in one frame: 64 answers of 64 KiB stay below the frame's limit


@dataclass(slots=True)
class Traffic:
    """What went over all sessions; for metrics."""

    frames_in: int = 0
    frames_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected: int = 0
    malformed: int = 0
    slow: int = 0
    silent: int = 0
    delayed: int = 0  # frames after which an agent wasn't listened to for a while
    flooding: int = 0  # sessions dropped because the agent said too much
    crowded: int = 0  # connections closed because there were too many, or because no request came


class Members:
    """Signs memberships with the cluster's key."""

    def __init__(self, key: Ed25519PrivateKey, lifetime: float) -> None:
        self._key = key
        self._lifetime = lifetime
        self.public = key.public_key().public_bytes_raw()

    def membership(self, now: float, node: bytes) -> Membership:
        """A statement that `node` is a member from now (Unix seconds) for a lifetime."""
        expires = int(now + self._lifetime)
        return Membership(node, expires, self._key.sign(attest.membership_bytes(node, expires)))

    def due(self, now: float, membership: Membership) -> bool:
        """Whether half of its life is over."""
        return membership.expires - now < self._lifetime / 2


class Session:
    """One agent's connection after its Hello was accepted."""

    def __init__(self, socket: web.WebSocketResponse, guest: Guest) -> None:
        self.guest = guest
        self.asks: dict[int, Ask] = {}  # not answered yet
        self.membership: Membership | None = None
        self._socket = socket
        self._queue: list[FromTracker] = []
        self._wake = asyncio.Event()
        self._held = False
        self._sending = False
        self._ended = ""

    @property
    def peer(self) -> PeerInfo:
        """Where peers reach it."""
        return self.guest.peer

    @property
    def address(self) -> str:
        """The host it comes from."""
        return self.guest.address

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self.guest.name

    def asked(self, message: Ask) -> None:
        """It waits for an answer; of too many questions the oldest ones are forgotten."""
        self.asks[message.id] = message
        if len(self.asks) > MAX_ASKS:
            del self.asks[next(iter(self.asks))]

    def push(self, message: FromTracker) -> None:
        """Send it with the next frame."""
        if isinstance(message, ANSWERS):
            self.asks.pop(message.id, None)
        self._queue.append(message)
        if not self._held:
            self._wake.set()

    def hold(self) -> None:
        """Send nothing until `flush`, which is to be called in this turn of the loop."""
        self._held = True

    async def flush(self, patience: Patience, traffic: Traffic) -> None:
        """Send what was held: whoever reads an agent's frame sends the answer, which spares a turn of `send_all`."""
        self._held = False
        if not self._queue:
            return
        rejected = any(isinstance(message, messages.Rejected) for message in self._queue)
        if rejected or self._sending or self._ended or len(self._queue) > FRAME_MESSAGES:
            self._wake.set()
            return
        batch, self._queue = self._queue, []
        await self._send(batch, patience, traffic)

    @property
    def waiting(self) -> int:
        """Messages not handed to the socket yet."""
        return len(self._queue)

    def end(self, reason: str) -> None:
        """Drop what waits and close."""
        self._ended = reason
        self._queue.clear()
        self._wake.set()

    async def send_all(self, patience: Patience, traffic: Traffic) -> str:
        """Send frames until the session is ended or a Rejected is sent; returns why."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._ended:
                return self._ended
            batch, self._queue = self._queue, []
            for start in range(0, len(batch), FRAME_MESSAGES):
                part = batch[start : start + FRAME_MESSAGES]
                await self._send(part, patience, traffic)
                if any(isinstance(message, messages.Rejected) for message in part):
                    return "it was rejected"

    async def _send(self, part: list[FromTracker], patience: Patience, traffic: Traffic) -> None:
        frame = messages.encode(part)
        self._sending = True
        patience.sending()
        await self._socket.send_bytes(frame)
        patience.sent()
        self._sending = False
        traffic.frames_out += 1
        traffic.bytes_out += len(frame)
        traffic.messages_out += len(part)


class Door:
    """Lets agents in and reads what they say."""

    def __init__(
        self,
        settings: TrackerSettings,
        members: Members,
        clock: Callable[[], float],
        banned: Callable[[bytes], float | None],
        full: Callable[[bytes], bool],
    ) -> None:
        self._settings = settings
        self._members = members
        self._clock = clock
        self._banned = banned
        self._full = full
        self.traffic = Traffic()

    async def admit(
        self,
        socket: web.WebSocketResponse,
        address: str,
        member: bytes | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Session, list[FromAgent]] | None:
        """Challenge, Hello, checks. The session, and what came in the Hello's frame behind it; None if refused.

        `member`: the node that the connection's certificate names; None where there are no certificates. `labels`:
        the certificate's, from the token that the node enrolled with; they count over those that it says itself.
        """
        nonce = secrets.token_bytes(32)
        await self._say(socket, messages.Challenge(limits.VERSION, nonce))
        async with asyncio.timeout(self._settings.hello_timeout):
            frame = await self.receive(socket)
        if not frame:
            return None
        hello, rest = frame[0], frame[1:]
        reason = self._objection(hello, nonce, member)
        if reason is not None or not isinstance(hello, Hello):
            await self.reject(socket, reason or "the first message must be Hello")
            return None
        peer = PeerInfo(hello.node, hello.host or address, hello.port)
        merged = dict(list({**labels, **hello.labels, **labels}.items())[:MAX_LABELS])
        return Session(socket, Guest(peer, address, hello.name, merged)), rest

    def _objection(self, hello: FromAgent, nonce: bytes, member: bytes | None) -> str | None:
        if not isinstance(hello, Hello):
            return "the first message must be Hello"
        if hello.version != limits.VERSION:
            return (
                f"this tracker speaks version {limits.VERSION} of the protocol, the agent version {hello.version}: "
                "update the older of the two"
            )
        if not attest.signature_holds(hello.node, hello.proof, attest.hello_bytes(nonce)):
            return "the proof isn't a signature of the challenge by the node's key"
        if member is not None and hello.node != member:
            return "the certificate is another node's"
        until = self._banned(hello.node)
        if until is not None:
            return f"this node is banned until {int(until)} (Unix time): `p2pdist-tracker bans list` says why"
        if self._full(hello.node):
            return "this tracker has all the nodes it may have (swarm.max_nodes)"
        return None

    async def reject(self, socket: web.WebSocketResponse, reason: str) -> None:
        """Say why, and close."""
        self.traffic.rejected += 1
        log.info("agent refused", reason=reason)
        await self._say(socket, messages.Rejected(reason))
        await socket.close()

    async def _say(self, socket: web.WebSocketResponse, message: FromTracker) -> None:
        async with asyncio.timeout(self._settings.send_timeout):
            await socket.send_bytes(messages.encode([message]))

    def welcome(self, session: Session, nodes: int, *, again: bool = False) -> None:
        """Tell the agent that it is a member; also when half of its membership's life is over, and `again`.

        With each Welcome an agent says again what it holds and wants.
        """
        now, membership = self._clock(), session.membership
        if membership is None or self._members.due(now, membership):
            membership = self._members.membership(now, session.peer.node)
        elif not again:
            return
        session.membership = membership
        session.push(messages.Welcome(membership, self._members.public, self._settings.session_timeout, nodes))

    async def receive(self, socket: web.WebSocketResponse) -> list[FromAgent] | None:
        """The next frame; None when the session is over.

        Raises:
            ProtocolError: the frame isn't one of this protocol.
        """
        frame = await socket.receive()
        if frame.type is not WSMsgType.BINARY:
            if frame.type is WSMsgType.TEXT:
                self.traffic.malformed += 1
                raise ProtocolError("a text frame; this protocol has binary ones only")
            if frame.type is WSMsgType.ERROR:
                self.traffic.malformed += 1
                raise ProtocolError(f"a broken frame: {frame.data}")
            return None
        self.traffic.frames_in += 1
        self.traffic.bytes_in += len(frame.data)
        if frame.data == _PING:
            self.traffic.messages_in += 1
            return PING
        try:
            decoded = messages.decode_from_agent(frame.data)
        except ProtocolError:
            self.traffic.malformed += 1
            raise
        self.traffic.messages_in += len(decoded)
        return decoded
