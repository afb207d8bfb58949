"""One session with one tracker: opened, greeted, read, spoken to. Frames that are none close it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
from aiohttp import ClientWebSocketResponse, ClientWSTimeout, WSMsgType
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import ProtocolError, TrackerError
from p2pdist.pki import Role
from p2pdist.places import Place
from p2pdist.protocol import attest, limits, messages
from p2pdist.protocol.messages import Challenge, FromAgent, FromTracker, Welcome

CLOSE_TIMEOUT = 1.0  # seconds to say goodbye
SHORTEST_SESSION, LONGEST_SESSION = 0.03, 86_400.0  # seconds of silence: what a tracker can ask for


@dataclass(frozen=True, slots=True)
class Me:
    """What an agent says of itself."""

    key: Ed25519PrivateKey
    name: str
    host: str
    port: int
    labels: dict[str, str]

    @property
    def node(self) -> bytes:
        """The public key."""
        return self.key.public_key().public_bytes_raw()


class Session:
    """A WebSocket to `place`. After `open` the tracker has shown that it lives; after `greet` it knows this node."""

    def __init__(self, place: Place, socket: ClientWebSocketResponse) -> None:
        self.place = place
        self.rest: list[FromTracker] = []  # what came in one frame with the Challenge or the Welcome
        self.heard = asyncio.Event()  # set by every frame
        self.heard_at = 0.0  # when the last one came, by the loop's clock
        self._socket = socket

    @classmethod
    async def open(cls, client: aiohttp.ClientSession, place: Place, tls: ssl.SSLContext | None) -> Session:
        """Connect and wait for the Challenge. What is raised: as from `receive`, and aiohttp.ClientError."""
        socket = await client.ws_connect(
            place.base + "/v1/session",
            headers=place.headers,
            max_msg_size=limits.MAX_TRACKER_FRAME,
            compress=0,
            timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
            ssl=tls if tls is not None else True,
            server_hostname=Role.TRACKER.host if tls is not None else place.name,
        )
        session = cls(place, socket)
        try:
            session.rest = await session.receive()
        except BaseException:
            await session.close()
            raise
        return session

    async def greet(self, me: Me) -> Welcome:
        """Prove who we are. TrackerError: it won't have us; otherwise as `receive`."""
        challenge = self.rest.pop(0)
        if not isinstance(challenge, Challenge):
            raise ProtocolError(f"the tracker began with {type(challenge).__name__}; wanted Challenge")
        if challenge.version != limits.VERSION:
            raise TrackerError(
                f"it speaks version {challenge.version} of the protocol, this agent version {limits.VERSION}: "
                "update the older of the two"
            )
        proof = me.key.sign(attest.hello_bytes(challenge.nonce))
        hello: FromAgent = messages.Hello(limits.VERSION, me.node, proof, me.name, me.host, me.port, me.labels)
        await self._socket.send_bytes(messages.encode([hello]))
        welcome, *self.rest = self.rest or await self.receive()
        if isinstance(welcome, messages.Rejected):
            raise TrackerError(welcome.reason)
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"the tracker answered Hello with {type(welcome).__name__}; wanted Welcome")
        check(welcome, me.node)
        return welcome

    async def receive(self) -> list[FromTracker]:
        """The messages of the next frame, at least one.

        Raises:
            ProtocolError: it isn't a frame of this protocol.
            ConnectionError: the tracker closed the session.
        """
        while True:
            frame = await self._socket.receive()
            if frame.type is WSMsgType.BINARY:
                self.heard.set()
                self.heard_at = asyncio.get_running_loop().time()
                decoded = messages.decode_from_tracker(frame.data)
                if decoded:
                    return decoded
            elif frame.type in {WSMsgType.TEXT, WSMsgType.ERROR}:
                raise ProtocolError(f"not a frame of this protocol: {frame.type.name} {frame.data!r:.100}")
            else:
                raise ConnectionError("the tracker closed the session")

    async def send(self, batch: list[FromAgent]) -> None:
        """In as few frames as may be."""
        for frame in frames(batch):
            await self._socket.send_bytes(frame)

    async def close(self) -> None:
        """Say goodbye; takes `CLOSE_TIMEOUT` at most."""
        await self._socket.close()


def check(welcome: Welcome, node: bytes) -> None:
    """ProtocolError unless it makes `node` a member and asks for what can be meant."""
    member = welcome.membership
    signed = attest.membership_bytes(member.node, member.expires)
    if member.node != node or not attest.signature_holds(welcome.cluster_key, member.signature, signed):
        raise ProtocolError("the tracker's Welcome doesn't say that this node is a member")
    if not SHORTEST_SESSION <= welcome.session_timeout <= LONGEST_SESSION:
        raise ProtocolError(f"the tracker drops sessions after {welcome.session_timeout} s; that can't be meant")


def frames(batch: list[FromAgent]) -> Iterator[bytes]:
    """The batch as frames no longer than the limit; a message that is longer by itself is the caller's mistake."""
    frame = messages.encode(batch)
    if len(frame) <= limits.MAX_TRACKER_FRAME or len(batch) == 1:
        yield frame
        return
    middle = len(batch) // 2
    yield from frames(batch[:middle])
    yield from frames(batch[middle:])
