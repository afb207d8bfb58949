"""An in-memory network for the mesh: connections with latency, and links with a rate, on the loop's own time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class MemoryNetwork:
    """`host(name, rate)` gives one node's network; rates in bytes per second of its uplink."""

    def __init__(self, latency: float = 0.001) -> None:
        self.latency = latency
        self.hosts: dict[str, Host] = {}

    def host(self, name: str, rate: float = 12_500_000) -> Host:
        self.hosts[name] = Host(self, name, rate)
        return self.hosts[name]


class Host:
    """One node; satisfies `p2pdist.mesh.network.Network`."""

    def __init__(self, network: MemoryNetwork, name: str, rate: float) -> None:
        self.network = network
        self.name = name
        self.rate = rate
        self.ports: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self.pipes: set[Pipe] = set()
        self.free_at = 0.0  # when the uplink has sent what it was given
        self.hung = False  # a stopped process: connections stay, nothing moves
        self.sent = 0

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Listening:
        port = port or 7000 + len(self.ports)
        self.ports[port] = factory
        return Listening(self, port)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> asyncio.Transport:
        await asyncio.sleep(2 * self.network.latency)
        other = self.network.hosts.get(host)
        if other is None or port not in other.ports:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        here, there = Pipe(self, other), Pipe(other, self)
        here.peer, there.peer = there, here
        there.start(other.ports[port]())
        here.start(factory())
        return here

    def kill(self) -> None:
        """The machine is gone: its connections break."""
        self.ports.clear()
        for pipe in list(self.pipes):
            pipe.abort()

    def hang(self) -> None:
        """SIGSTOP: nothing comes from here any more, and nothing breaks."""
        self.hung = True


class Listening:
    def __init__(self, host: Host, port: int) -> None:
        self.host, self.port = host, port

    def close(self) -> None:
        self.host.ports.pop(self.port, None)


class Pipe(asyncio.Transport):
    """One side of a connection."""

    WINDOW = 64 * 1024  # bytes that may wait for the uplink

    def __init__(self, owner: Host, other: Host) -> None:
        super().__init__()
        self.owner, self.other = owner, other
        self.peer: Pipe
        self.protocol: Any = None
        self.closed = False
        self.waiting = 0
        self.paused = False
        self.loop = asyncio.get_running_loop()

    def start(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol
        self.owner.pipes.add(self)
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.other.name, 0) if name == "peername" else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed or not data:
            return
        now = self.loop.time()
        self.owner.free_at = max(self.owner.free_at, now) + len(data) / self.owner.rate
        self.owner.sent += len(data)
        self.waiting += len(data)
        self.loop.call_at(self.owner.free_at, self._left, len(data))
        self.loop.call_at(self.owner.free_at + self.owner.network.latency, self.peer._arrive, bytes(data))
        if self.waiting > self.WINDOW and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def _left(self, size: int) -> None:
        self.waiting -= size
        if self.paused and self.waiting <= self.WINDOW and not self.closed and not self.owner.hung:
            self.paused = False
            self.protocol.resume_writing()

    def _arrive(self, data: bytes) -> None:
        if self.closed or self.owner.hung or self.other.hung:
            return
        if isinstance(self.protocol, asyncio.BufferedProtocol):
            while data and not self.closed:
                buffer = self.protocol.get_buffer(-1)
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                data = data[size:]
                self.protocol.buffer_updated(size)
        else:
            self.protocol.data_received(data)

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._closed(None)
        if self.owner.hung:
            return  # a stopped process closes nothing
        self.loop.call_later(self.owner.network.latency, self.peer._closed, ConnectionResetError("reset"))

    def _closed(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self.owner.pipes.discard(self)
            self.loop.call_soon(self.protocol.connection_lost, error)
