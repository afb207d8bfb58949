"""Chunks on their way out: the connections to the peer port, what they ask for, and whose turn it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from p2pdist.mesh.decide import Decisions, Turn
from p2pdist.mesh.neighbours import MeshSettings, Neighbours
from p2pdist.mesh.serving import Inbound
from p2pdist.mesh.wire import Head
from p2pdist.protocol.chunks import chunk_range
from p2pdist.swarm.engine import EngineStats
from p2pdist.swarm.exchange import Exchange


class Uploads:
    """What one node serves. Implements `serving.ServerOwner`."""

    def __init__(
        self,
        near: Neighbours,
        decide: Decisions[bytes],
        exchanges: dict[str, Exchange],
        stats: EngineStats,
        settings: MeshSettings,
        identify: Callable[[object], bytes | None] | None,
    ) -> None:
        self.connections: dict[Inbound, bytes] = {}  # and the node on the other side, once it is known
        self._near = near
        self._decide = decide
        self._exchanges = exchanges
        self._stats = stats
        self._settings = settings
        self._identify = identify
        self._queued: dict[Inbound, tuple[Exchange, int, int, int]] = {}

    def start(self) -> None:
        """Ready to be asked."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self.connections):
            connection.abort()

    def ban(self, peer: bytes) -> None:
        """Close its connections."""
        for connection, node in list(self.connections.items()):
            if node == peer:
                connection.abort()

    def withdraw(self, exchange: Exchange) -> None:
        """The blob is no longer served: whoever waits for a chunk of it is told so."""
        for connection, queued in list(self._queued.items()):
            if queued[0] is exchange:
                del self._queued[connection]
                connection.answer(404, "Not Found")

    def connected(self, connection: Inbound) -> bool:
        """A connection came; False refuses it."""
        node = self._identify(connection.tls) or b"" if self._identify is not None and connection.tls else b""
        mine = sum(other == node for other in self.connections.values()) if node else 0
        if len(self.connections) >= self._settings.max_connections or mine >= self._settings.max_per_node:
            self._stats.refused_connections += 1
            return False
        self.connections[connection] = node
        if node:
            connection.end_after(self._near.lifetimes.seen(node, connection.tls) - time.time())
        return True

    def bad_request(self) -> None:
        """Something came that is no request, or too large."""
        self._stats.bad_requests += 1

    def too_slow(self) -> None:
        """A connection was closed on which nothing happened."""
        self._stats.slow_connections += 1

    def disconnected(self, connection: Inbound) -> None:
        """It is closed."""
        self.connections.pop(connection, None)
        if self._queued.pop(connection, None) is not None:
            self._decide.withdrawn(connection)

    def chunk_request(self, connection: Inbound, head: Head, digest: str, span: tuple[int, int]) -> None:
        """A request for a range; answered now or later."""
        node = self._near.node_of(connection.tls, head)
        if not node or self._near.is_banned(node, self._loop.time()):
            connection.answer(403, "Forbidden", close=True)
            return
        if self.connections.get(connection) != node:
            self.connections[connection] = node
            if sum(other == node for other in self.connections.values()) > self._settings.max_per_node:
                self._stats.refused_connections += 1
                connection.answer(503, "Service Unavailable", close=True)
                return
        exchange = self._exchanges.get(digest)
        if exchange is None or head.number("p2pdist-chunk") not in (0, exchange.chunk_size):
            connection.answer(404, "Not Found")
            return
        start, end = span
        index = start // exchange.chunk_size
        first, last = chunk_range(index, exchange.size, exchange.chunk_size)
        if start >= exchange.size or not first <= start < end <= last:
            connection.answer(416, "Range Not Satisfiable")
            return
        self._queued[connection] = (exchange, index, start, end)
        chunks, active = head.number("p2pdist-chunks"), head.number("p2pdist-active")
        self.take(self._decide.request(connection, node, digest, index, chunks, active))

    def take(self, turn: Turn[bytes]) -> None:
        """Answer those whose turn it is."""
        for waiter in turn.serve:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            exchange, index, start, end = self._queued.pop(connection)
            connection.serve(exchange, start, end, self._decide.load, exchange.attestation(index))
        for waiter in turn.refuse:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            self._queued.pop(connection, None)
            connection.refuse(self._decide.load)
        for waiter in turn.absent:
            connection = waiter.token
            assert isinstance(connection, Inbound)
            self._queued.pop(connection, None)
            connection.answer(404, "Not Found", f"P2pdist-Load: {self._decide.load}\r\n")

    def served(self, connection: Inbound, sent: int, whole: bool) -> None:
        """An answer has ended."""
        self._stats.bytes_out += sent
        self.take(self._decide.uploaded())

    def upgrade(self, connection: Inbound, head: Head) -> None:
        """A neighbour wants a control link on this connection."""
        self._near.upgrade(connection, head)
        if connection.taken_over:
            self.connections.pop(connection, None)
