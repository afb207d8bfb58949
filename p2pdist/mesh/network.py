"""How the mesh reaches other nodes. The contract tests run the same engine over an in-memory implementation."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from p2pdist.pki import Role

_NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT on Linux (tcp(7)); Python's socket module has no name for it
_HANDSHAKE = 5.0  # seconds that a peer has for its TLS handshake
_SHUTDOWN = 1.0  # and for its part of the goodbye
_UNSENT = 64 * 1024  # bytes the kernel keeps beyond what is on the wire: more would hide a busy uplink from us


class Listener(Protocol):
    """A listening port."""

    port: int

    def close(self) -> None:
        """Take no more connections."""


class Network(Protocol):
    """Stream connections between nodes."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """Accept connections; port 0 takes a free one. OSError if it can't."""

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Transport:
        """Open a connection; OSError if it can't."""


class _TcpListener:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()


class TcpNetwork:
    """TCP, under mutual TLS where contexts are given: then the other side is a node of the cluster, or no one."""

    def __init__(self, server_tls: ssl.SSLContext | None = None, client_tls: ssl.SSLContext | None = None) -> None:
        self._server_tls = server_tls
        self._client_tls = client_tls

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listener:
        """See `Network`."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            factory,
            host,
            port,
            ssl=self._server_tls,
            backlog=1024,
            ssl_handshake_timeout=_HANDSHAKE if self._server_tls is not None else None,
            ssl_shutdown_timeout=_SHUTDOWN if self._server_tls is not None else None,
        )
        return _TcpListener(server)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Transport:
        """See `Network`."""
        loop = asyncio.get_running_loop()
        if self._client_tls is None:
            transport, _ = await loop.create_connection(factory, host, port)
        else:
            transport, _ = await loop.create_connection(
                factory,
                host,
                port,
                ssl=self._client_tls,
                server_hostname=Role.NODE.host,
                ssl_handshake_timeout=_HANDSHAKE,
                ssl_shutdown_timeout=_SHUTDOWN,
            )
        return transport


def tune_sender(transport: asyncio.Transport) -> None:
    """Small buffers and no delay, so that the wait for a busy uplink is ours to schedule."""
    transport.set_write_buffer_limits(high=0)
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT)


class WakeUp:
    """Wakes the reader of a connection only when enough bytes are there: saves most wake-ups at link speed.

    Works on a duplicate of the socket, because uvloop makes a new socket object at every look at its own. Does nothing
    under TLS: the socket counts bytes of records there, and the end of a body may be shorter than what is waited for.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        encrypted = transport.get_extra_info("ssl_object") is not None
        sock = None if encrypted else transport.get_extra_info("socket")
        self._socket = socket.socket(fileno=os.dup(sock.fileno())) if sock is not None else None
        self._size = 1

    def after(self, size: int) -> None:
        """From now on when `size` bytes are there."""
        if size != self._size and self._socket is not None:
            self._size = size
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def close(self) -> None:
        """The connection is over."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
