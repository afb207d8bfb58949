"""The cheapest WebSocket client (RFC 6455) that a tracker can't tell from an agent's: for thousands in one process.

Binary frames out, masked with a key of zeros (a mask protects proxies on the way; there are none); whole frames in.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import cast

from p2pdist.protocol.limits import MAX_TRACKER_FRAME

_HEAD = (
    b"GET /v1/session HTTP/1.1\r\nHost: tracker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10


class Socket(asyncio.Protocol):
    """`on_frame` gets each binary frame; `on_lost` hears once that the connection is over, and why."""

    def __init__(self, on_frame: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self.frames_out = 0
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = b""
        self._upgraded = False
        self._why = "the tracker closed the connection"
        self._transport: asyncio.Transport

    def send(self, frame: bytes, kind: int = _BINARY) -> None:
        """One frame, at once."""
        size = len(frame)
        if size < 126:
            head = struct.pack("!BBxxxx", 0x80 | kind, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBHxxxx", 0x80 | kind, 0xFE, size)
        else:
            head = struct.pack("!BBQxxxx", 0x80 | kind, 0xFF, size)
        self.frames_out += 1
        self._transport.write(head + frame)

    def close(self) -> None:
        """Without goodbye."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(str(exc) if exc is not None else self._why)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        if not self._upgraded:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = buffer
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                self._fail(f"the tracker answered {buffer[:60]!r}")
                return
            self._upgraded = True
            buffer = buffer[end + 4 :]
        self._buffer = self._frames(buffer)

    def _frames(self, buffer: bytes) -> bytes:
        """Hand over the whole frames in the buffer; returns the rest."""
        place = 0
        while len(buffer) - place >= 2:
            size, body = buffer[place + 1], place + 2
            if size == 126:
                size, body = int.from_bytes(buffer[body : body + 2], "big"), body + 2
            elif size == 127:
                size, body = int.from_bytes(buffer[body : body + 8], "big"), body + 8
            if size > MAX_TRACKER_FRAME or not buffer[place] & 0x80:
                self._fail("a frame that is too long, or in pieces")
                return b""
            if len(buffer) < body + size:
                break
            self._frame(buffer[place] & 0x0F, buffer[body : body + size])
            place = body + size
        return buffer[place:]

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == _BINARY:
            self._on_frame(payload)
        elif kind == _PING:
            self.send(payload, _PONG)
        elif kind == _CLOSE:
            self._fail(f"the tracker said goodbye: {payload[2:].decode(errors='replace')}")

    def _fail(self, why: str) -> None:
        self._why = why
        self._transport.abort()
