"""Nodes of the BitTorrent engine on loopback, and peers that speak nothing but BitTorrent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import libtorrent as lt
import uvloop
from engines.engine_networks import TorrentOnLoopback, own_address
from support.swarmlab import Lab, Node

from p2pdist.swarm.exchange import Exchange
from p2pdist.torrent.engine import TorrentEngine
from p2pdist.torrent.live import Live
from p2pdist.torrent.metainfo import of_blob
from p2pdist.torrent.settings import TorrentSettings, session_settings

Case = Callable[[Lab, TorrentOnLoopback], Awaitable[None]]


def run_case(
    directory: Path, case: Case, network: type[TorrentOnLoopback] = TorrentOnLoopback, **settings: object
) -> None:
    """Run `case` on uvloop; `settings` go into every engine's."""
    nodes = network(directory, **settings)

    async def main() -> None:
        async with Lab(directory, nodes.make, nodes.address) as lab:
            await case(lab, nodes)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def live_of(node: Node) -> Live:
    """What the node's engine knows of its blob."""
    engine, exchange = node.engine, node.exchange
    assert isinstance(engine, TorrentEngine) and exchange is not None
    return engine._parts.lives[exchange.name]


class RawPeer:
    """A libtorrent session that serves a file as the cold torrent of a blob, whatever is in it."""

    def __init__(self, directory: Path, exchange: Exchange, data: bytes, host: str) -> None:
        self.host, self.port = host, 0
        self._exchange, self._data, self._directory = exchange, data, directory
        self.session: lt.session | None = None
        self.handle: lt.torrent_handle | None = None

    async def __aenter__(self) -> RawPeer:
        await asyncio.to_thread(self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.handle = None
        holder = [self.session]
        self.session = None
        await asyncio.to_thread(holder.clear)

    def _start(self) -> None:
        settings = TorrentSettings(self._directory, host=self.host, discover=False)
        parameters = lt.session_params()
        parameters.settings = session_settings(settings, 0, "-XX0000-abcdefghijkl", checks=False)
        self.session = lt.session(parameters)
        path = self._directory / f"raw-{self.host}"
        path.write_bytes(self._data)
        exchange = self._exchange
        torrent = lt.load_torrent_buffer(of_blob(exchange.digest, exchange.size, exchange.chunk_size).data)
        torrent.save_path = str(self._directory)
        torrent.renamed_files = {0: path.name}
        torrent.have_pieces = [True] * exchange.count
        torrent.flags = (lt.torrent_flags.default_flags | lt.torrent_flags.no_verify_files) & ~(
            lt.torrent_flags.auto_managed | lt.torrent_flags.paused
        )
        self.handle = self.session.add_torrent(torrent)
        self.port = self.session.listen_port()

    def dial(self, node: Node) -> None:
        """Connect to a node's cold session."""
        assert self.handle is not None
        self.handle.connect_peer((node.host_name, node.engine.port + 1))


async def raw_peer(stack: AsyncExitStack, directory: Path, exchange: Exchange, data: bytes) -> RawPeer:
    """A running one, on an address of its own."""
    return await stack.enter_async_context(RawPeer(directory, exchange, data, own_address(200 + os.getpid() % 50)))
