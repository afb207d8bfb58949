"""The neighbours: control links dialled and accepted, kept alive, dropped, banned; and where each node is reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from p2pdist.errors import PeerError, ProtocolError
from p2pdist.mesh.control import ControlLink
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.lifetime import Lifetimes
from p2pdist.mesh.network import Network
from p2pdist.mesh.serving import Inbound
from p2pdist.mesh.wire import UPGRADE, Alive, AnyFrame, Head, parse_head
from p2pdist.protocol import limits
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope

_log = structlog.get_logger("p2pdist.mesh")
DIAL = 3.0  # seconds to connect to a peer
_ADDRESSES = 4096  # nodes whose address is remembered


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """Where to listen, and bounds. `advertise`: the host that peers are told, empty: the one they see."""

    host: str = "0.0.0.0"
    port: int = 0
    advertise: str = ""
    max_connections: int = 1024
    max_links: int = 128
    max_per_node: int = 16  # data connections from one node
    zone: str = ""


class NeighbourOwner(Protocol):
    """Who is told of links."""

    def link_up(self, link: ControlLink) -> None:
        """A link is open."""

    def link_down(self, node: bytes) -> None:
        """It is closed."""

    def link_frame(self, link: ControlLink, frame: AnyFrame) -> None:
        """A frame came on it."""

    def link_dead(self, node: bytes) -> None:
        """It was closed because nothing came any more."""

    def link_ended(self, node: bytes) -> None:
        """It is closed because the neighbour's certificate has ended."""


class Neighbours:
    """The links of one node. `port` is set once it listens."""

    def __init__(
        self,
        owner: NeighbourOwner,
        node: bytes,
        network: Network,
        settings: MeshSettings,
        knobs: Knobs,
        identify: Callable[[object], bytes | None] | None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wall = wall  # Unix time, which certificates are dated in
        self.port = 0
        self.addresses: dict[bytes, PeerInfo] = {}
        self.links: dict[bytes, ControlLink] = {}
        self._owner = owner
        self._node = node
        self._network = network
        self._settings = settings
        self._knobs = knobs
        self.lifetimes = Lifetimes()
        self._identify = identify  # node id from a TLS object; None: no TLS, the header is believed
        self._dialling: set[bytes] = set()
        self._banned: dict[bytes, float] = {}
        self._looked = 0.0

    def start(self, scope: Scope, port: int) -> None:
        """Ready to dial; `scope` owns the dials."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self.port = port

    def close(self) -> None:
        """Close every link."""
        for link in list(self.links.values()):
            link.close()

    def dial(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, on top of those there are."""
        now = self._loop.time()
        for peer in peers:
            self._learn(peer)
            busy = peer.node in self.links or peer.node in self._dialling or peer.node == self._node
            if busy or self.is_banned(peer.node, now) or len(self.links) >= self._settings.max_links:
                continue
            self._dialling.add(peer.node)
            self._scope.spawn(self._dial(peer))

    def _learn(self, peer: PeerInfo) -> None:
        self.addresses.pop(peer.node, None)
        self.addresses[peer.node] = peer
        if len(self.addresses) > _ADDRESSES:
            oldest = next(node for node in self.addresses if node not in self.links)
            del self.addresses[oldest]

    async def _dial(self, peer: PeerInfo) -> None:
        greeting = _Greeting(self._link_head())
        try:
            async with asyncio.timeout(DIAL):
                transport = await self._network.connect(lambda: greeting, peer.host, peer.port)
                head, rest = await greeting.answered
            node = self.node_of(transport.get_extra_info("ssl_object"), head)
            self.lifetimes.seen(node, transport.get_extra_info("ssl_object"))
            if head.status != 101 or node != peer.node:
                transport.abort()
                return
            self._linked(transport, ControlLink(self, peer, dialled=True, now=self._loop.time()), rest)
        except (OSError, TimeoutError, ProtocolError) as error:
            _log.debug("peer not reached", host=peer.host, port=peer.port, error=str(error))
        finally:
            greeting.close()
            self._dialling.discard(peer.node)

    def _link_head(self) -> str:
        return (
            f"GET /v1/link HTTP/1.1\r\nHost: peer\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
            f"P2pdist-Node: {self._node.hex()}\r\nP2pdist-Port: {self.port}\r\n"
            f"P2pdist-Host: {self._settings.advertise}\r\n{self._zone_line()}\r\n"
        )

    def _zone_line(self) -> str:
        zone = self._settings.zone
        return f"P2pdist-Zone: {zone}\r\n" if zone and zone.isascii() and zone.isprintable() else ""

    def foreign(self, node: bytes) -> bool:
        """Whether it is in another zone than this node: chunks come from there under leases only."""
        peer = self.addresses.get(node)
        return peer is not None and bool(peer.zone and self._settings.zone) and peer.zone != self._settings.zone

    def node_of(self, tls: object | None, head: Head) -> bytes:
        """Who is on the other side: by the certificate, or without TLS by what it says; empty if that is nobody."""
        if self._identify is not None:
            return (self._identify(tls) if tls is not None else None) or b""
        text = head.headers.get("p2pdist-node", "")
        try:
            node = bytes.fromhex(text)
        except ValueError:
            return b""
        return node if len(node) == 32 else b""

    def upgrade(self, connection: Inbound, head: Head) -> None:
        """A neighbour wants a control link on this connection."""
        now = self._loop.time()
        node = self.node_of(connection.tls, head)
        self.lifetimes.seen(node, connection.tls)
        if head.headers.get("upgrade") != UPGRADE or not node or node == self._node or self.is_banned(node, now):
            connection.answer(403, "Forbidden", close=True)
            return
        existing = self.links.get(node)
        if existing is None and len(self.links) >= self._settings.max_links:
            connection.answer(503, "Service Unavailable", close=True)
            return
        if existing is not None and existing.dialled and self._node < node and now - existing.heard < self._knobs.stall:
            connection.answer(409, "Conflict", close=True)  # both dialled: the smaller node's connection stays
            return
        host = head.headers.get("p2pdist-host") or connection.address
        zone = head.headers.get("p2pdist-zone", "")[:255]
        peer = PeerInfo(node, host[:255], head.number("p2pdist-port") & 0xFFFF, zone=zone)
        if node not in self.addresses:
            self._learn(peer)
        lines = f"Connection: Upgrade\r\nUpgrade: {UPGRADE}\r\nP2pdist-Node: {self._node.hex()}\r\n"
        transport = connection.take_over(lines)
        if transport is not None:
            self._linked(transport, ControlLink(self, peer, dialled=False, now=now), connection.leftover)

    def _linked(self, transport: asyncio.Transport, link: ControlLink, rest: bytes) -> None:
        node = link.peer.node
        old = self.links.get(node)
        if old is not None:
            if link.dialled and not old.dialled and node < self._node:
                transport.abort()
                return
            self.links.pop(node)
            self._owner.link_down(node)
            old.close()
        self.links[node] = link
        link.attach(transport)
        self._owner.link_up(link)
        if rest:
            link.data_received(rest)

    def link_lost(self, link: ControlLink, why: Exception | None) -> None:
        """The link is closed."""
        node = link.peer.node
        if self.links.get(node) is not link:
            return
        del self.links[node]
        if why is not None:
            _log.debug("link lost", peer=node.hex()[:12], error=str(why))
        self._owner.link_down(node)

    def link_frame(self, link: ControlLink, frame: AnyFrame) -> None:
        """A frame came."""
        self._owner.link_frame(link, frame)

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while."""
        self._banned[peer] = self._loop.time() + seconds
        link = self.links.get(peer)
        if link is not None:
            link.close(PeerError("banned", peer=peer.hex()))

    def is_banned(self, peer: bytes, now: float) -> bool:
        """Whether `peer` is to be left alone."""
        until = self._banned.get(peer)
        if until is not None and until <= now:
            del self._banned[peer]
            return False
        return until is not None

    def look_after(self, now: float) -> None:
        """Say that we live, drop who does not, and let go of links that nobody uses."""
        paused = now - self._looked > self._knobs.silent / 2  # this process stood still: nobody was silent but us
        self._looked = now
        for link in list(self.links.values()):
            if paused:
                link.heard = max(link.heard, now - self._knobs.silent / 2)
            if now - link.heard > self._knobs.silent:
                self.drop_dead(link, f"silent for {now - link.heard:.1f} s")
            elif self.lifetimes.over(link.peer.node, self._wall() - self._knobs.grace):
                self._owner.link_ended(link.peer.node)
                link.close(PeerError("its certificate has ended", peer=link.peer.node.hex()))
            elif now - link.used > self._knobs.idle:
                link.close()
            elif now - link.said >= self._knobs.alive:
                link.send(Alive())

    def drop_dead(self, link: ControlLink, why: str) -> None:
        """Close a link on which nothing comes any more."""
        link.close(PeerError(why, peer=link.peer.node.hex()))
        self._owner.link_dead(link.peer.node)


class _Greeting(asyncio.Protocol):
    """Sends the upgrade request and waits for the head of the answer."""

    def __init__(self, request: str) -> None:
        self.answered: asyncio.Future[tuple[Head, bytes]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        transport.write(self._request.encode("ascii"))

    def data_received(self, data: bytes) -> None:
        if self.answered.done():
            self._buffer += data
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= limits.MAX_HTTP_HEAD:
            return
        try:
            self.answered.set_result((parse_head(bytes(self._buffer[: max(end, 0)])), bytes(self._buffer[end + 4 :])))
        except ProtocolError as error:
            self.answered.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionResetError("the peer closed the connection"))

    def close(self) -> None:
        """Nobody waits any more."""
        if not self.answered.done():
            self.answered.cancel()
        elif not self.answered.cancelled():
            self.answered.exception()
