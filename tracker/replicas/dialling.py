"""How a replica opens a link to another one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import TracebackType

import aiohttp
import structlog
from aiohttp import ClientWSTimeout

from p2pdist.errors import ProtocolError
from p2pdist.pki import Role
from p2pdist.protocol.messages import Banned
from tracker.replicas.election import Memory
from tracker.replicas.guests import Source
from tracker.replicas.link import Line, LinkLost, Relay
from tracker.replicas.wire import MAX_FRAME, VERSION, Elsewhere, Greet, Leads, Replica, decode_to_follower

log = structlog.get_logger()
PATH = "/v1/replica"
CONNECT_TIMEOUT = 1.5  # seconds for a connection, and for each step of the greeting
LOST = (ProtocolError, LinkLost, TimeoutError, ConnectionError, aiohttp.ClientError)


class Dialler:
    """Greets as `memory` says we are; the agents behind a link are those of `source`."""

    def __init__(
        self, memory: Memory, source: Source, tls: ssl.SSLContext | None, hear_ban: Callable[[Banned], None]
    ) -> None:
        self._memory = memory
        self._source = source
        self._tls = tls
        self._hear_ban = hear_ban
        self._client: aiohttp.ClientSession
        self._sockets: dict[Relay, aiohttp.ClientWebSocketResponse] = {}

    async def __aenter__(self) -> None:
        self._client = aiohttp.ClientSession()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for relay in list(self._sockets):
            await self.hang_up(relay)
        await self._client.close()

    async def connect(self, address: str, term: int = 0) -> Relay | Elsewhere | None:
        """Greet a replica. `term`: ours, if we lead. None: it doesn't answer, or is ourselves."""
        url = f"{'http' if self._tls is None else 'https'}://{address}{PATH}"
        answer = socket = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                socket = await self._client.ws_connect(
                    url,
                    max_msg_size=MAX_FRAME,
                    compress=0,
                    timeout=ClientWSTimeout(ws_close=1.0),
                    ssl=self._tls if self._tls is not None else True,
                    server_hostname=Role.TRACKER.host if self._tls is not None else None,
                )
            greet = Greet(VERSION, self._memory.me, self._memory.address, term)
            answer = await self._greet(socket, greet)
        except LOST as error:
            log.info("a replica doesn't answer", address=address, reason=reason_of(error))
        finally:
            if socket is not None and not isinstance(answer, Relay):
                await socket.close()
        return answer

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse, greet: Greet) -> Relay | Elsewhere | None:
        line = Line(socket)
        await line.send(greet)
        answers = decode_to_follower(await line.receive(CONNECT_TIMEOUT))
        match answers[0] if answers else None:
            case Leads() | Elsewhere() as answer if answer.replica == self._memory.me:
                return None  # an address that was another replica's is ours now
            case Leads() as leads:
                relay = Relay(socket, leads, self._source, self._heard, self._hear_ban)
                self._sockets[relay] = socket
                self._heard(leads)
                return relay
            case Elsewhere() as elsewhere:
                return elsewhere
            case other:
                raise ProtocolError(f"a replica answered with {type(other).__name__}")

    def _heard(self, leads: Leads) -> None:
        address = next((one.address for one in leads.replicas if one.id == leads.replica), "")
        self._memory.hear(Replica(leads.replica, address), leads.term, leads.replicas)

    async def hang_up(self, relay: Relay) -> None:
        """Close a link."""
        socket = self._sockets.pop(relay, None)
        if socket is not None:
            await socket.close()


def reason_of(error: BaseException) -> str:
    """Why a link was lost, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
