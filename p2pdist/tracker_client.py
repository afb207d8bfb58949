"""The agent's side of its session with a tracker: one WebSocket, kept up for as long as the agent runs.

Frames are batched: everything said in one loop turn leaves in one frame. Nothing is queued while there is no session:
the agent says everything again when it hears that it is connected.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import aiohttp
import structlog
from aiohttp import ClientWebSocketResponse, ClientWSTimeout, WSMsgType
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import ProtocolError, TrackerError
from p2pdist.pki import Role
from p2pdist.protocol import attest, limits, messages
from p2pdist.protocol.messages import Absent, Content, Fetch, FromAgent, FromTracker, Welcome

log = structlog.get_logger()

CONNECT_TIMEOUT = 2.0  # seconds for TCP and the WebSocket handshake, and for each step of the greeting
FIRST_DELAY = 0.2  # seconds before the first new attempt; doubles
LONGEST_DELAY = 5.0
LASTING = 5.0  # seconds after which a session that ends is taken up again at once, with the same tracker
CLOSE_TIMEOUT = 1.0  # seconds to say goodbye
SHORTEST_SESSION, LONGEST_SESSION = 0.03, 86_400.0  # seconds of silence: what a tracker can ask for


class TrackerClient:
    """Keeps a session with one of several trackers.

    `on_message` gets every message of the tracker, synchronously and in order, those that answer `ask` included;
    `on_state` hears True when the session is up (Welcome has been handed over) and False when it is lost. A
    ProtocolError from `on_message` closes the session; any other exception ends `run`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: Ed25519PrivateKey,
        name: str,
        host: str,
        port: int,
        labels: Mapping[str, str],
        *,
        on_message: Callable[[FromTracker], None],
        on_state: Callable[[bool], None],
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not urls:
            raise ValueError("a tracker client needs at least one URL")
        self._urls = [url.rstrip("/") + "/v1/session" for url in urls]
        self._key = key
        self._node = key.public_key().public_bytes_raw()
        self._name, self._host, self._port, self._labels = name, host, port, dict(labels)
        self._tls = tls  # for https:// trackers: this node's certificate and the authority it trusts
        self._on_message = on_message
        self._on_state = on_state
        self._rng = rng or random.Random()
        self._pause = pause  # between attempts
        self._queue: list[FromAgent] = []
        self._wake = asyncio.Event()
        self._asks: dict[int, asyncio.Future[Content | Fetch | Absent]] = {}
        self._next_ask = 0
        self.connected = False
        self.welcome: Welcome | None = None  # the last one; kept while the session is lost

    def send(self, message: FromAgent) -> bool:
        """Say something to the tracker with this loop turn's frame; False (and dropped) when there is no session."""
        if not self.connected:
            return False
        self._queue.append(message)
        self._wake.set()
        return True

    async def ask(self, key: str, timeout: float) -> Content | Fetch | Absent:
        """Ask for small content; `Fetch` means: read it from upstream and send Offer or Refuse.

        Raises:
            TrackerError: there is no session, it was lost meanwhile, or no answer came within `timeout` seconds.
        """
        number = self._next_ask
        self._next_ask += 1
        future: asyncio.Future[Content | Fetch | Absent] = asyncio.get_running_loop().create_future()
        if not self.send(messages.Ask(number, key)):
            raise TrackerError(f"no tracker to ask for {key!r}")
        self._asks[number] = future
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            raise TrackerError(f"no answer from the tracker within {timeout} s to {key!r}") from error
        finally:
            self._asks.pop(number, None)

    # --- the session ---

    async def run(self) -> None:
        """Keep a session until cancelled."""
        attempt = 0
        delay = FIRST_DELAY
        async with aiohttp.ClientSession() as client:
            while True:
                url = self._urls[attempt % len(self._urls)]
                attempt += 1
                if await self._attempt(client, url) >= LASTING:
                    delay, attempt = FIRST_DELAY, attempt - 1  # the same one first
                    await self._pause(self._rng.uniform(0, delay))
                elif attempt % len(self._urls) == 0:  # all were tried
                    await self._pause(self._rng.uniform(delay / 2, delay))
                    delay = min(LONGEST_DELAY, 2 * delay)

    async def _attempt(self, client: aiohttp.ClientSession, url: str) -> float:
        """One session; how many seconds it lasted, 0 if there was none."""
        loop = asyncio.get_running_loop()
        begun = math.inf
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                socket = await client.ws_connect(
                    url,
                    max_msg_size=limits.MAX_TRACKER_FRAME,
                    compress=0,
                    timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                    ssl=self._tls if self._tls is not None else True,
                    server_hostname=Role.TRACKER.host if self._tls is not None else None,
                )
            async with socket:
                welcome, rest = await self._greet(socket)
                begun = loop.time()
                await self._converse(socket, welcome, rest)
            log.info("tracker session ended", url=url)
        except ProtocolError as error:
            log.warning("tracker session closed: malformed", url=url, error=str(error))
        except TrackerError as error:
            log.warning("tracker refuses", url=url, error=str(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("no tracker session", url=url, error=str(error) or type(error).__name__)
        return max(0.0, loop.time() - begun)

    async def _greet(self, socket: ClientWebSocketResponse) -> tuple[Welcome, list[FromTracker]]:
        """Prove who we are; the Welcome, and what came behind it in the same frame."""
        challenge = (await self._receive(socket, CONNECT_TIMEOUT))[0]
        if not isinstance(challenge, messages.Challenge):
            raise ProtocolError(f"the tracker began with {type(challenge).__name__}; wanted Challenge")
        if challenge.version != limits.VERSION:
            raise TrackerError(
                f"it speaks version {challenge.version} of the protocol, this agent version {limits.VERSION}: "
                "update the older of the two"
            )
        proof = self._key.sign(attest.hello_bytes(challenge.nonce))
        hello: FromAgent = messages.Hello(
            limits.VERSION, self._node, proof, self._name, self._host, self._port, self._labels
        )
        await socket.send_bytes(messages.encode([hello]))
        welcome, *rest = await self._receive(socket, CONNECT_TIMEOUT)
        if isinstance(welcome, messages.Rejected):
            raise TrackerError(welcome.reason)
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"the tracker answered Hello with {type(welcome).__name__}; wanted Welcome")
        self._check(welcome)
        return welcome, rest

    def _check(self, welcome: Welcome) -> None:
        member = welcome.membership
        signed = attest.membership_bytes(member.node, member.expires)
        if member.node != self._node or not attest.signature_holds(welcome.cluster_key, member.signature, signed):
            raise ProtocolError("the tracker's Welcome doesn't say that this node is a member")
        if not SHORTEST_SESSION <= welcome.session_timeout <= LONGEST_SESSION:
            raise ProtocolError(f"the tracker drops sessions after {welcome.session_timeout} s; that can't be meant")

    async def _converse(self, socket: ClientWebSocketResponse, welcome: Welcome, rest: list[FromTracker]) -> None:
        """Hand over what comes and send what is said, until the session is lost."""
        self._wake.clear()
        self.connected = True
        try:
            self._deliver(welcome)
            self._on_state(True)
            for message in rest:
                self._deliver(message)
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_all(socket))
                pinger = tasks.create_task(self._ping(welcome.session_timeout / 3))
                try:
                    await self._read(socket, welcome.session_timeout)
                finally:
                    sender.cancel()
                    pinger.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            self.connected = False
            self._queue.clear()
            asks, self._asks = self._asks, {}
            for future in asks.values():
                if not future.done():
                    future.set_exception(TrackerError("the session with the tracker was lost"))
            self._on_state(False)

    async def _read(self, socket: ClientWebSocketResponse, timeout: float) -> None:
        while True:
            for message in await self._receive(socket, timeout):
                self._deliver(message)
                if isinstance(message, messages.Rejected):
                    raise TrackerError(message.reason)

    def _deliver(self, message: FromTracker) -> None:
        if isinstance(message, Welcome):
            self._check(message)
            self.welcome = message
        self._on_message(message)
        if isinstance(message, Content | Fetch | Absent):
            future = self._asks.get(message.id)
            if future is not None and not future.done():
                future.set_result(message)
            elif isinstance(message, Fetch):  # whoever asked has given up: another node is to read it
                self.send(messages.Refuse(message.key, 0, final=False))

    async def _receive(self, socket: ClientWebSocketResponse, timeout: float) -> list[FromTracker]:
        """The messages of the next frame, at least one.

        Raises:
            ProtocolError: it isn't a frame of this protocol.
            ConnectionError: the tracker closed the session.
            TimeoutError: nothing came.
        """
        while True:
            async with asyncio.timeout(timeout):
                frame = await socket.receive()
            if frame.type is WSMsgType.BINARY:
                decoded = messages.decode_from_tracker(frame.data)
                if decoded:
                    return decoded
            elif frame.type in {WSMsgType.TEXT, WSMsgType.ERROR}:
                raise ProtocolError(f"not a frame of this protocol: {frame.type.name} {frame.data!r:.100}")
            else:
                raise ConnectionError("the tracker closed the session")

    async def _send_all(self, socket: ClientWebSocketResponse) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._queue = self._queue, []
            for frame in _frames(batch):
                await socket.send_bytes(frame)

    async def _ping(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self.send(messages.Ping())


def _frames(batch: list[FromAgent]) -> Iterator[bytes]:
    """The batch as frames no longer than the limit; a message that is longer by itself is the caller's mistake."""
    frame = messages.encode(batch)
    if len(frame) <= limits.MAX_TRACKER_FRAME or len(batch) == 1:
        yield frame
        return
    middle = len(batch) // 2
    yield from _frames(batch[:middle])
    yield from _frames(batch[middle:])
