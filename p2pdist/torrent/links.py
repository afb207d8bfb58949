"""Control links between neighbours: who a peer is, and what BitTorrent can't carry (see `wire`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from p2pdist.errors import OperationError, PeerError, ProtocolError
from p2pdist.protocol.messages import PeerInfo
from p2pdist.scope import Scope
from p2pdist.swarm.engine import EngineStats
from p2pdist.torrent.settings import TorrentSettings
from p2pdist.torrent.wire import VERSION, Alive, AnyFrame, FrameReader, Hello, encode

_log = structlog.get_logger("p2pdist.torrent")
_DIAL = 3.0  # seconds to connect, and to say who one is
_UNREAD = 4 * 1024 * 1024  # bytes a neighbour may leave unread before its link is closed
_PORTS = 2  # free ports wanted behind a link port
_TRIES = 50  # for a port of the system's choice with free ones behind it


class LinksOwner(Protocol):
    """Who is told what happens on links."""

    @property
    def stats(self) -> EngineStats:
        """Where what is refused is counted."""

    def admits(self, node: bytes) -> bool:
        """Whether a link with this node is wanted."""

    def linked(self, link: Link) -> None:
        """A neighbour is there."""

    def link_frame(self, link: Link, frame: AnyFrame) -> None:
        """A frame came. ProtocolError closes the link."""

    def unlinked(self, link: Link, why: Exception | None) -> None:
        """It is gone."""


class Link(asyncio.Protocol):
    """One connection; a neighbour once its Hello came. `dialled`: this node opened it. Times are loop times."""

    def __init__(self, links: Links, hello: Hello, expected: bytes | None, *, dialled: bool) -> None:
        self.peer: PeerInfo | None = None
        self.host = ""  # the address it is reached at
        self.dialled = dialled
        self.expected = expected  # the node that was dialled, where it is known
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # known, or closed
        self._links = links
        self._loop = asyncio.get_running_loop()
        self.heard = self.said = self.used = self._loop.time()
        self._reader = FrameReader()
        self._out = bytearray(encode(hello))
        self._transport: asyncio.Transport | None = None
        self._closed = False

    @property
    def node(self) -> bytes:
        """The neighbour's id; empty before its Hello."""
        return self.peer.node if self.peer is not None else b""

    @property
    def tls(self) -> object | None:
        """The TLS object, where the connection is encrypted."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        """Connected."""
        if self._closed:  # there were too many when it came
            transport.abort()
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=_UNREAD)
        name = transport.get_extra_info("peername")
        self.host = str(name[0]) if name else ""
        self._flush()
        self._loop.call_later(_DIAL, self._too_late)

    def _too_late(self) -> None:
        if self.peer is None and not self._closed:
            self._links.owner.stats.slow_connections += not self.dialled
            self.close(ProtocolError("nobody said who it is"))

    def data_received(self, data: bytes) -> None:
        """Frames from the neighbour."""
        self.heard = self._loop.time()
        try:
            for frame in self._reader.feed(data):
                if self._closed:
                    return
                if self.peer is None:
                    self._links.greeted(self, frame)
                    continue
                if not isinstance(frame, Alive):
                    self.used = self.heard
                self._links.owner.link_frame(self, frame)
        except ProtocolError as error:
            self._links.owner.stats.bad_requests += 1
            self.close(error)
        except PeerError as error:
            self.close(error)

    def send(self, frame: AnyFrame) -> None:
        """Queue a frame; all of one turn of the loop leave together."""
        if self._closed or self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        if not isinstance(frame, Alive):
            self.used = self._loop.time()
        self._out += encode(frame)

    def _flush(self) -> None:
        if self._closed or self._transport is None:
            return
        self.said = self._loop.time()
        self._transport.write(bytes(self._out))
        self._out.clear()
        if self._transport.get_write_buffer_size() > _UNREAD:
            self._links.owner.stats.slow_connections += 1
            self.close(ProtocolError("the neighbour does not read its control link"))

    def close(self, why: Exception | None = None) -> None:
        """Close it; the owner is told once."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        if not self.settled.done():
            self.settled.set_result(None)
        self._links.lost(self, why)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side or the network closed it."""
        self.close(exc)


class Links:
    """The links of this node: listens, dials, and keeps one link per neighbour."""

    def __init__(self, node: bytes, settings: TorrentSettings, owner: LinksOwner) -> None:
        self.owner = owner
        self.neighbours: dict[bytes, Link] = {}
        self._node = node
        self._settings = settings
        self._tls = settings.tls
        # the neighbour dials BitTorrent where the link comes from
        self._from = (settings.host, 0) if settings.host not in ("0.0.0.0", "::") else None
        self._dialling: set[tuple[str, int]] = set()
        self._strangers: set[Link] = set()
        self._stopped = False
        self._looked: float | None = None

    async def start(self, scope: Scope) -> int:
        """Listen; the port, behind which others are free. OperationError if that can't be."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        for _ in range(_TRIES if self._settings.port == 0 else 1):
            server = await self._listen(self._settings.port)
            port: int = server.sockets[0].getsockname()[1]
            self.port = port
            if self._settings.port or await self._free_behind():
                self._server = server
                return self.port
            server.close()
        raise OperationError(f"no port with {_PORTS} free ones behind it on {self._settings.host}")

    async def _listen(self, port: int) -> asyncio.Server:
        host, tls = self._settings.host, self._tls
        try:
            return await self._loop.create_server(
                lambda: self._stranger(None, dialled=False),
                host,
                port,
                ssl=tls.server if tls else None,
                ssl_handshake_timeout=_DIAL if tls else None,
                backlog=512,
            )
        except OSError as error:
            raise OperationError(f"can't listen on {host}:{port}: {error.strerror}") from error

    async def _free_behind(self) -> bool:
        for port in range(self.port + 1, self.port + 1 + _PORTS):
            if port > 65535:
                return False
            try:
                probe = await self._loop.create_server(asyncio.Protocol, self._settings.host, port)
            except OSError:
                return False
            probe.close()
        return True

    def stop(self) -> None:
        """Close all; no new ones come, whatever libtorrent still finds."""
        self._stopped = True
        self._server.close()
        for link in [*self.neighbours.values(), *self._strangers]:
            link.close()

    def _stranger(self, expected: bytes | None, *, dialled: bool) -> Link:
        link = Link(self, Hello(VERSION, self._node, self.port), expected, dialled=dialled)
        if len(self._strangers) + len(self.neighbours) >= 2 * self._settings.max_links:
            self.owner.stats.refused_connections += not dialled
            link.close()
        else:
            self._strangers.add(link)
        return link

    def dial(self, host: str, port: int, node: bytes | None) -> None:
        """Open a link to whoever is there (`node`: or to nobody)."""
        address = (host, port)
        full = len(self.neighbours) + len(self._dialling) >= self._settings.max_links
        if not (self._stopped or full or address in self._dialling or self._known(address, node)):
            self._dialling.add(address)
            self._scope.spawn(self._dial(address, node))

    def _known(self, address: tuple[str, int], node: bytes | None) -> bool:
        if node is not None:
            return node == self._node or node in self.neighbours
        return any((link.host, link.peer.port) == address for link in self.neighbours.values() if link.peer is not None)

    async def _dial(self, address: tuple[str, int], node: bytes | None) -> None:
        tls = self._tls
        link = self._stranger(node, dialled=True)
        try:
            async with asyncio.timeout(_DIAL):
                await self._loop.create_connection(
                    lambda: link,
                    *address,
                    ssl=tls.client if tls else None,
                    server_hostname=tls.name if tls else None,
                    local_addr=self._from,
                )
                await link.settled
        except (OSError, TimeoutError) as error:
            _log.debug("peer not reached", host=address[0], port=address[1], error=str(error))
            link.close()
        finally:
            self._dialling.discard(address)

    def greeted(self, link: Link, frame: AnyFrame) -> None:
        """The first frame of a connection.

        Raises:
            ProtocolError: it is none that begins one, or says what its certificate doesn't.
            PeerError: there is to be no link with this node now.
        """
        if not isinstance(frame, Hello) or frame.version != VERSION:
            raise ProtocolError("not a control link of this version")
        node = frame.node
        if self._tls is not None and (link.tls is None or self._tls.identify(link.tls) != node):
            raise ProtocolError("the certificate names another node")
        if node == self._node or link.expected not in (None, node) or not self.owner.admits(node):
            raise PeerError("not the node that is wanted here", peer=node.hex())
        old = self.neighbours.get(node)
        if old is not None:
            silent = self._loop.time() - old.heard > self._settings.silent
            if (link.dialled == old.dialled or link.dialled != (self._node < node)) and not silent:
                # Both dialled: the smaller node's connection stays.
                raise PeerError("there is a link already", peer=node.hex())
            old.close()
        elif len(self.neighbours) >= self._settings.max_links:
            self.owner.stats.refused_connections += 1
            raise PeerError("there are enough links", peer=node.hex())
        self._strangers.discard(link)
        self.neighbours[node] = link
        link.peer = PeerInfo(node, link.host, frame.port)
        link.settled.set_result(None)
        self.owner.linked(link)

    def lost(self, link: Link, why: Exception | None) -> None:
        """A connection is closed."""
        self._strangers.discard(link)
        if link.peer is not None and self.neighbours.get(link.peer.node) is link:
            del self.neighbours[link.peer.node]
            self.owner.unlinked(link, why)

    def look_after(self, now: float, dead: Callable[[bytes, str], None]) -> None:
        """Say that we live, drop who does not (`dead` is told), and let go of links that nobody uses.

        Only time in which this node could listen counts as silence: when it was itself held up, what the others said
        meanwhile is still to be read.
        """
        held_up = now - self._looked if self._looked is not None else 0.0
        self._looked = now
        if held_up > self._settings.silent / 2:
            for link in self.neighbours.values():
                link.heard += held_up
        for node, link in list(self.neighbours.items()):
            if now - link.heard > self._settings.silent:
                link.close(PeerError(f"silent for {now - link.heard:.1f} s", peer=node.hex()))
                dead(node, link.host)
            elif now - link.used > self._settings.idle:
                link.close()
            elif now - link.said >= self._settings.alive:
                link.send(Alive())
