"""The control link between two neighbours: frames both ways, batched per turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

from p2pdist.errors import ProtocolError
from p2pdist.mesh.wire import Alive, AnyFrame, FrameReader, encode
from p2pdist.protocol.messages import PeerInfo

_UNREAD = 4 * 1024 * 1024  # bytes a neighbour may leave unread before its link is closed


class LinkOwner(Protocol):
    """Who is told what happens on a link."""

    def link_frame(self, link: ControlLink, frame: AnyFrame) -> None:
        """A frame came."""

    def link_lost(self, link: ControlLink, why: Exception | None) -> None:
        """The link is closed."""


class ControlLink(asyncio.Protocol):
    """One open link. `dialled`: this node opened it. `peer.port` is 0 until the neighbour's own port is known."""

    def __init__(self, owner: LinkOwner, peer: PeerInfo, *, dialled: bool, now: float) -> None:
        self.peer = peer
        self.dialled = dialled
        self.heard = now  # loop time of the last bytes from there
        self.said = now  # and to there
        self.used = now  # of the last frame, either way, that was more than a sign of life
        self.blobs: dict[int, OpenBlob] = {}  # what the neighbour opened, by its numbers
        self._owner = owner
        self._reader = FrameReader()
        self._out = bytearray()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def attach(self, transport: asyncio.Transport) -> None:
        """Take over a connection on which the upgrade is agreed."""
        self._transport = transport
        transport.set_write_buffer_limits(high=_UNREAD)
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Frames from the neighbour."""
        self.heard = self._loop.time()
        try:
            for frame in self._reader.feed(data):
                if not isinstance(frame, Alive):
                    self.used = self.heard
                self._owner.link_frame(self, frame)
        except ProtocolError as error:
            self.close(error)

    def send(self, frame: AnyFrame) -> None:
        """Queue a frame; all of one turn of the loop leave together."""
        self.send_encoded(encode(frame), alive=isinstance(frame, Alive))

    def send_encoded(self, data: bytes, *, alive: bool = False) -> None:
        """The same for a frame that goes to several neighbours; `alive`: it is no use of the link."""
        if self._closed or self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        if not alive:
            self.used = self._loop.time()
        self._out += data

    def _flush(self) -> None:
        if self._closed or self._transport is None:
            return
        self.said = self._loop.time()
        self._transport.write(bytes(self._out))
        self._out.clear()
        if self._transport.get_write_buffer_size() > _UNREAD:
            self.close(ProtocolError("the neighbour does not read its control link"))

    def close(self, why: Exception | None = None) -> None:
        """Close the link; the owner is told once."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        self._owner.link_lost(self, why)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side or the network closed it."""
        self.close(exc)


class OpenBlob:
    """What a neighbour said of one blob."""

    __slots__ = ("chunk_size", "digest", "have", "size")

    def __init__(self, digest: str, size: int, chunk_size: int, have: int) -> None:
        self.digest = digest
        self.size = size
        self.chunk_size = chunk_size
        self.have = have
