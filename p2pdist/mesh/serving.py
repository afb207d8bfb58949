"""The peer port: HTTP/1.1 GET with Range for chunks, and the upgrade to a control link.

Answers 206 with the chunk, this node's load and the chunk's attestation; 503 with the load when all slots are taken;
404 for a blob or chunk that is not here. Any HTTP client can read a complete blob's ranges for debugging.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from p2pdist.errors import ProtocolError, StorageError
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.network import tune_sender
from p2pdist.mesh.wire import Head, parse_head, parse_range
from p2pdist.protocol import limits
from p2pdist.swarm.attest import to_header
from p2pdist.swarm.exchange import Exchange

_PIECE = 256 * 1024  # bytes read and written at a time
_LONGEST = 30 * 86_400.0  # seconds that a timer is set for


class ServerOwner(Protocol):
    """Who decides about requests."""

    def connected(self, connection: Inbound) -> bool:
        """A connection came; False refuses it."""

    def disconnected(self, connection: Inbound) -> None:
        """It is closed."""

    def upgrade(self, connection: Inbound, head: Head) -> None:
        """A neighbour wants a control link on this connection."""

    def chunk_request(self, connection: Inbound, head: Head, digest: str, span: tuple[int, int]) -> None:
        """A request for a range; answered by `serve` or `refuse` now or later."""

    def served(self, connection: Inbound, sent: int, whole: bool) -> None:
        """The answer that `serve` began has ended."""

    def bad_request(self) -> None:
        """Something came that is no request, or too large; for metrics."""

    def too_slow(self) -> None:
        """A connection is closed on which nothing happened; for metrics."""


class Inbound(asyncio.Protocol):
    """One connection to the peer port."""

    def __init__(self, owner: ServerOwner, knobs: Knobs | None = None) -> None:
        self._knobs = knobs or Knobs()
        self._timer: asyncio.TimerHandle | None = None  # for the first request, or for the other side to take something
        self._life: asyncio.TimerHandle | None = None  # until its certificate ends
        self._ended = False
        self.node = b""  # who is on the other side; set by the first request
        self._owner = owner
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._busy = False  # a request is being answered
        self._body: tuple[Exchange, int, int] | None = None  # exchange, next offset, end
        self._start = 0
        self._paused = False

    @property
    def address(self) -> str:
        """The other side's host."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if name else ""

    @property
    def tls(self) -> object | None:
        """The TLS object, where the connection is encrypted."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        """A peer connected."""
        self._transport = transport
        tune_sender(transport)
        if not self._owner.connected(self):
            transport.abort()
            return
        self._wait(self._knobs.first_request)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._transport = None
        self._wait(None)
        if self._life is not None:
            self._life.cancel()
        self._end(whole=False)
        self._owner.disconnected(self)

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one."""
        self._buffer += data
        if not self._busy:
            self._next()
        elif len(self._buffer) > limits.MAX_HTTP_HEAD:
            self.abort()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > limits.MAX_HTTP_HEAD:
                self._owner.bad_request()
                self.answer(431, "Request Header Fields Too Large", close=True)
            return
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        try:
            head = parse_head(raw)
        except ProtocolError:
            self._owner.bad_request()
            self.answer(400, "Bad Request", close=True)
            return
        self._busy = True
        self._wait(None)
        self._dispatch(head)

    def _dispatch(self, head: Head) -> None:
        method, path, version = head.words
        if version != "HTTP/1.1" or "content-length" in head.headers or "transfer-encoding" in head.headers:
            self.answer(400, "Bad Request", close=True)
        elif method != "GET":
            self.answer(405, "Method Not Allowed", close=True)
        elif path == "/v1/link":
            self._owner.upgrade(self, head)
        elif path.startswith("/v1/blobs/"):
            span = parse_range(head.headers.get("range", ""))
            if span is None:
                self.answer(400, "Bad Request")
            else:
                self._owner.chunk_request(self, head, path[len("/v1/blobs/") :], span)
        else:
            self.answer(404, "Not Found")

    @property
    def taken_over(self) -> bool:
        """It is a control link now, or closed."""
        return self._transport is None

    def take_over(self, lines: str) -> asyncio.Transport | None:
        """Answer 101 with these header lines and hand the connection out. None: it is closed."""
        if self._transport is None:
            return None
        transport, self._transport = self._transport, None
        self._wait(None)
        if self._life is not None:
            self._life.cancel()
        transport.write(f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("ascii"))
        return transport

    @property
    def leftover(self) -> bytes:
        """What came behind the request that asked for the upgrade."""
        return bytes(self._buffer)

    def answer(self, status: int, reason: str, headers: str = "", *, close: bool = False) -> None:
        """An answer without a body; `headers` are whole lines."""
        self._busy = False
        if self._transport is None:
            return
        ending = "Connection: close\r\n" if close else ""
        self._transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n{headers}{ending}\r\n".encode("ascii")
        )
        if close:
            self._transport.close()
        elif self._buffer:
            self._next()

    def refuse(self, load: int) -> None:
        """All slots are taken."""
        self.answer(503, "Service Unavailable", f"P2pdist-Load: {load}\r\n")

    def serve(self, exchange: Exchange, start: int, end: int, load: int, attestation: bytes | None) -> None:
        """Send bytes `start` to `end` of proved chunks."""
        if self._transport is None:
            self._owner.served(self, 0, False)
            return
        extra = f"P2pdist-Attestation: {to_header(attestation)}\r\n" if attestation else ""
        self._body = (exchange, start, end)
        self._start = start
        self._wait(self._knobs.untaken)
        self._transport.write(
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {end - start}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{exchange.size}\r\n"
            f"Content-Type: application/octet-stream\r\nP2pdist-Load: {load}\r\n{extra}\r\n".encode("ascii")
        )
        self._write_on(first=True)

    def pause_writing(self) -> None:
        """The uplink is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._paused = False
        if self._body is not None:
            self._write_on()

    def _write_on(self, *, first: bool = False) -> None:
        while self._body is not None and self._transport is not None and (first or not self._paused):
            first = False
            exchange, offset, end = self._body
            if offset == end:
                self._end(whole=True)
                return
            try:
                data = os.pread(exchange.fd, min(_PIECE, end - offset), offset)
            except (OSError, StorageError):
                data = b""
            if not data:
                self.abort()
                return
            self._body = (exchange, offset + len(data), end)
            self._wait(self._knobs.untaken)
            self._transport.write(data)

    def _end(self, *, whole: bool) -> None:
        body, self._body = self._body, None
        if body is None:
            return
        self._busy = False
        self._wait(None)
        self._owner.served(self, body[1] - self._start, whole)
        if self._ended:
            self.abort()
        if whole and self._buffer and not self._busy:
            self._next()

    def end_after(self, seconds: float) -> None:
        """The other side's certificate ends then: what is being sent is finished, and nothing else begun."""
        self._life = asyncio.get_running_loop().call_later(min(seconds, _LONGEST), self._end_of_life)

    def _end_of_life(self) -> None:
        self._ended = True
        if not self._busy and self._transport is not None:
            self._transport.close()

    def _wait(self, seconds: float | None) -> None:
        """Close the connection if nothing happens for so long; None: it may be idle."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._late)

    def _late(self) -> None:
        if self._transport is not None:
            self._owner.too_slow()
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
