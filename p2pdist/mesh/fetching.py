"""One data connection to a peer: asks for a chunk, feeds the bytes to its receiver, is used again.

The body goes from the socket into one buffer and from there to the file and the hash: no copy in between.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from p2pdist.errors import PeerError, ProtocolError, StorageError
from p2pdist.mesh.decide import Ask
from p2pdist.mesh.network import WakeUp
from p2pdist.mesh.wire import Head, parse_head
from p2pdist.protocol import limits
from p2pdist.protocol.chunks import chunk_range
from p2pdist.swarm.attest import from_header
from p2pdist.swarm.exchange import Exchange, Receiver

_BUFFER = 256 * 1024
_WAKE = 64 * 1024  # bytes that are worth waking up for: half of the smallest common chunk, where neighbours are told


class FetchOwner(Protocol):
    """Who is told what comes."""

    def fetch_answered(self, fetch: Fetch, load: int) -> bool:
        """206: the chunk begins to arrive; False gives it up (it is here already)."""

    def fetch_progress(self, fetch: Fetch, got: int) -> None:
        """Bytes came."""

    def fetch_done(self, fetch: Fetch, head: Head) -> None:
        """All bytes of the chunk are in its receiver."""

    def fetch_busy(self, fetch: Fetch, load: int) -> None:
        """503."""

    def fetch_absent(self, fetch: Fetch, load: int) -> None:
        """404: the chunk is not there (any more)."""

    def fetch_failed(self, fetch: Fetch, why: Exception) -> None:
        """It came to nothing."""


class Fetch:
    """One request for one chunk."""

    __slots__ = ("ask", "began", "connection", "exchange", "half", "receiver")

    def __init__(self, ask: Ask[bytes], exchange: Exchange) -> None:
        self.ask = ask
        self.exchange = exchange
        self.receiver: Receiver | None = None
        self.connection: Outbound | None = None
        self.began = 0.0  # loop time of the first byte
        self.half = False  # neighbours were told that it is coming


def prove_answer(fetch: Fetch, head: Head) -> bool:
    """Prove a chunk that came whole by the attestation that came with it; see `Exchange.prove`."""
    ask = fetch.ask
    assert fetch.receiver is not None
    fetch.receiver.close()
    text = head.headers.get("p2pdist-attestation")
    if text is None:
        raise PeerError(f"chunk {ask.index} of {ask.blob} came without an attestation", peer=ask.peer.hex())
    return fetch.exchange.prove(fetch.receiver, from_header(text), ask.peer)


class Outbound(asyncio.BufferedProtocol):
    """One connection, at most one request at a time."""

    def __init__(self, owner: FetchOwner) -> None:
        self._owner = owner
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._fetch: Fetch | None = None
        self._head: Head | None = None
        self._transport: asyncio.Transport | None = None
        self._wake: WakeUp | None = None
        self.usable = False
        self.ends = math.inf  # Unix time at which the peer's certificate does

    @property
    def tls(self) -> object | None:
        """The TLS object, where the connection is encrypted."""
        return self._transport.get_extra_info("ssl_object") if self._transport is not None else None

    def hand(self, owner: FetchOwner) -> None:
        """Who is told from now on; nothing is under way."""
        self._owner = owner

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvloop's is no subclass
        """Connected."""
        self._transport = transport
        self._wake = WakeUp(transport)
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer or the network closed it."""
        self.usable = False
        self._transport = None
        if self._wake is not None:
            self._wake.close()
        self._give_up(exc or ConnectionResetError("the peer closed the connection"))

    def request(self, fetch: Fetch, headers: str) -> None:
        """Send the request of `fetch`; `headers` are whole lines."""
        assert self._transport is not None
        self._fetch = fetch
        self._head = None
        self._filled = 0
        fetch.connection = self
        exchange, index = fetch.exchange, fetch.ask.index
        start, end = chunk_range(index, exchange.size, exchange.chunk_size)
        self._transport.write(
            f"GET /v1/blobs/{exchange.name} HTTP/1.1\r\nHost: peer\r\nRange: bytes={start}-{end - 1}\r\n"
            f"P2pdist-Chunk: {exchange.chunk_size}\r\n{headers}\r\n".encode("ascii")
        )

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: behind an unfinished head, else to the buffer's start."""
        if self._head is None and self._filled < limits.MAX_HTTP_HEAD:
            return self._view[self._filled :]
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        fetch = self._fetch
        if fetch is None:
            self.close()  # nothing was asked for
            return
        try:
            if self._head is not None:
                self._feed(fetch, 0, nbytes)
                return
            self._filled += nbytes
            self._read_head(fetch)
        except (PeerError, ProtocolError, StorageError, ValueError, OSError) as error:
            self.close(error)

    def _read_head(self, fetch: Fetch) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled >= limits.MAX_HTTP_HEAD:
                raise ProtocolError("the answer's head is too large")
            return
        head = parse_head(bytes(self._view[:end]))
        load = head.number("p2pdist-load")
        if head.status in (404, 416, 503):
            if head.number("content-length") or self._filled != end + 4:
                raise ProtocolError("a refusal with a body")
            self._finish()
            if head.status == 503:
                self._owner.fetch_busy(fetch, load)
            elif head.status == 404:
                self._owner.fetch_absent(fetch, load)
            else:
                self._owner.fetch_failed(fetch, ProtocolError(f"the peer answered {head.status}"))
            return
        length = fetch.exchange.length(fetch.ask.index)
        if head.status != 206 or head.headers.get("content-length") != str(length):
            raise ProtocolError(f"{length} bytes asked for; answered {head.words[1]} {head.headers!r:.200}")
        if not self._owner.fetch_answered(fetch, load):
            self.close()
            return
        fetch.receiver = fetch.exchange.receive(fetch.ask.index)
        self._head = head
        filled, self._filled = self._filled, 0
        if filled > end + 4:
            self._feed(fetch, end + 4, filled)
        else:
            self._set_wake(fetch.receiver.remaining)

    def _feed(self, fetch: Fetch, start: int, end: int) -> None:
        receiver = fetch.receiver
        assert receiver is not None and self._head is not None
        receiver.feed(self._view[start:end])
        self._owner.fetch_progress(fetch, end - start)
        if self._fetch is not fetch:
            return  # given up meanwhile
        self._set_wake(receiver.remaining or 1)
        if not receiver.remaining:
            head = self._head
            self._finish()
            self._owner.fetch_done(fetch, head)

    def _set_wake(self, remaining: int) -> None:
        if self._wake is not None:
            self._wake.after(min(_WAKE, remaining))

    def look(self) -> None:
        """Wake up at whatever is there: nothing came for a while, perhaps only less than is worth waking up for."""
        self._set_wake(1)

    def _finish(self) -> None:
        self._fetch = None
        self._head = None
        self._filled = 0

    def close(self, why: Exception | None = None) -> None:
        """Abort the connection and whatever is under way on it."""
        self.usable = False
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._wake is not None:
            self._wake.close()
        self._give_up(why or ConnectionAbortedError("given up"))

    def _give_up(self, why: Exception) -> None:
        fetch = self._fetch
        self._finish()
        if fetch is not None:
            if fetch.receiver is not None:
                fetch.receiver.close()
            self._owner.fetch_failed(fetch, why)
