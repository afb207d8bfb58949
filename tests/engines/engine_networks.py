"""What the contract suite asks of a network, once per engine: nodes on it, and what can happen to a node."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import uvloop
from support.memnet import MemoryNetwork
from support.swarmlab import Lab
from support.virtual import run_virtual

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.settings import TorrentSettings


class Network(Protocol):
    """The nodes' network; nodes are named as in `Lab.node`."""

    def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
        """A node's engine."""

    def address(self, name: str) -> str:
        """Where other nodes reach it."""

    def kill(self, name: str) -> None:
        """The machine is gone: its connections break, new ones are refused."""

    def hang(self, name: str) -> None:
        """SIGSTOP: nothing comes from it any more, and nothing breaks."""

    def sockets(self, name: str) -> int:
        """How many connections and listening ports the node has."""


Case = Callable[[Lab, Network], Awaitable[None]]
Run = Callable[[Case], None]


class MeshOnMemory:
    """The mesh over an in-memory network, at injected time."""

    def __init__(self, directory: Path) -> None:
        self._network = MemoryNetwork()

    def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
        return MeshEngine(attestor.node, self._network.host(name), MeshSettings(), rng)

    def address(self, name: str) -> str:
        return name

    def kill(self, name: str) -> None:
        self._network.hosts[name].kill()

    def hang(self, name: str) -> None:
        self._network.hosts[name].hang()

    def sockets(self, name: str) -> int:
        host = self._network.hosts[name]
        return len(host.pipes) + len(host.ports)

    @staticmethod
    def run(main: Coroutine[Any, Any, None]) -> None:
        run_virtual(main)


class TorrentOnLoopback:
    """libtorrent over loopback, each node on an address of its own, in real time."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._directory = directory
        self._settings = {"discover": False, **settings}
        self._addresses: dict[str, str] = {}
        self._engines: dict[str, TorrentEngine] = {}
        self._dying: list[asyncio.Task[None]] = []

    def make(self, name: str, attestor: Attestor, rng: random.Random) -> Engine:
        settings = TorrentSettings(self._directory / f"torrent-{name}", host=self.address(name), **self._settings)
        engine = self._engines[name] = TorrentEngine(attestor, settings, rng)
        return engine

    def address(self, name: str) -> str:
        return self._addresses.setdefault(name, own_address(len(self._addresses) + 1))

    def kill(self, name: str) -> None:
        self._dying.append(asyncio.get_running_loop().create_task(self._engines[name].stop()))

    def hang(self, name: str) -> None:
        """Its links fall silent and libtorrent sends nothing; the connections stay."""
        engine = self._engines[name]
        engine._parts.links.dial = lambda *_: None  # type: ignore[method-assign]
        for link in engine._parts.links.neighbours.values():
            link.send = link.data_received = lambda _: None  # type: ignore[method-assign]
        for session in engine._parts.torrents.sessions.values():
            _starve(session)

    def sockets(self, name: str) -> int:
        return count_sockets(self._addresses[name])

    @staticmethod
    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)


def _starve(session: Any) -> None:
    inner = session._session
    for peer_class in (inner.global_peer_class_id, inner.local_peer_class_id, inner.tcp_peer_class_id):
        limits = inner.get_peer_class(peer_class)
        limits["upload_limit"] = 1
        inner.set_peer_class(peer_class, limits)


def own_address(number: int) -> str:
    """A loopback address that no other test process of this machine uses."""
    process = os.getpid()
    return f"127.{process // 250 % 250 + 1}.{process % 250 + 1}.{number}"


def count_sockets(host: str) -> int:
    """TCP sockets of this machine on a loopback address that are listening or connected."""
    wanted = "".join(f"{int(part):02X}" for part in reversed(host.split(".")))
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        count += local.startswith(wanted) and state in ("01", "0A")
    return count
