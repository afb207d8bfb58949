"""The chunk map: the real SHA-1 of every chunk, which only a node that holds the whole blob can say.

A node that has nothing of a blob yet asks a neighbour that has all of it for the map, and then fetches through the
torrent with real hashes, in the session where libtorrent checks every piece: a wrong piece is dropped before it is
passed on. Nothing is believed because of a map: each chunk is still proved against its attestation.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import structlog

from p2pdist.errors import StorageError
from p2pdist.scope import Scope
from p2pdist.torrent.files import chunk_map
from p2pdist.torrent.live import COLD, MAPPED, Live, MapRequest, Theirs
from p2pdist.torrent.metainfo import SHA1
from p2pdist.torrent.wire import MAP_PART, AnyFrame, MapPart, NeedMap

_log = structlog.get_logger("p2pdist.torrent")
_PATIENCE = 2.0  # seconds for the map to come, and ...
_PACE = 100_000_000  # ... one more for so many bytes, which a holder must hash first
_STUCK = 3.0  # seconds without a piece after which a map is taken for a wrong one


class MapsOwner(Protocol):
    """Who carries out what follows."""

    def send(self, node: bytes, frame: AnyFrame) -> None:
        """A frame to a neighbour."""

    def wants(self, live: Live, torrents: int) -> None:
        """These torrents of the blob should be loaded, too (a whole blob) or instead (one that is fetched)."""


class Maps:
    """See the module."""

    def __init__(self, owner: MapsOwner, pool: ThreadPoolExecutor) -> None:
        self._owner = owner
        self._pool = pool  # not the engine's: a map takes as long as hashing the blob
        self._waiting: dict[Live, set[bytes]] = {}

    def start(self, scope: Scope) -> None:
        """Ready."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()

    # --- asking --------------------------------------------------------------------------------------------------

    def met(self, live: Live, node: bytes, theirs: Theirs) -> None:
        """A neighbour is in the swarm."""
        useful = live.fetching and live.mappable and live.want == COLD and live.map_asked is None
        if theirs.whole and useful and not live.exchange.have and not live.arrived:
            until = self._loop.time() + _PATIENCE + live.exchange.size / _PACE
            live.map_asked = MapRequest(node, until)
            self._owner.send(node, NeedMap(live.number))

    def part(self, live: Live, node: bytes, frame: MapPart) -> None:
        """A part of a map came."""
        hashes = live.take_map(node, frame.first, frame.hashes)
        if hashes is not None and not live.exchange.have and not live.arrived:
            live.hashes = hashes
            live.map_from = node
            self._owner.wants(live, MAPPED)

    def look(self, live: Live, now: float) -> None:
        """Give up a map that does not come, and one with which nothing comes."""
        if live.map_asked is not None and now > live.map_asked.until:
            live.map_asked = None
        if live.fetching and live.want == MAPPED and live.unfinished and now - live.moved > _STUCK:
            _log.warning("nothing comes by the chunk map: on without it", digest=live.exchange.name)
            live.mappable = False
            self._drop(live)

    def distrusted(self, live: Live, node: bytes) -> None:
        """A neighbour lied; so its map may be one, too."""
        if live.fetching and live.want == MAPPED and live.map_from == node:
            self._drop(live)

    def _drop(self, live: Live) -> None:
        live.hashes = live.map_from = b""
        self._owner.wants(live, COLD)

    def gone(self, live: Live, node: bytes) -> None:
        """A neighbour left the swarm."""
        if live.map_asked is not None and live.map_asked.node == node:
            live.map_asked = None
        self._waiting.get(live, set()).discard(node)

    # --- answering -----------------------------------------------------------------------------------------------

    def asked(self, live: Live, node: bytes) -> None:
        """A neighbour asks for the map."""
        if not live.exchange.stored:
            return
        if live.hashes:
            self._answer(live, node)
            return
        self._waiting.setdefault(live, set()).add(node)
        self._begin(live)

    def serve(self, live: Live) -> None:
        """A neighbour fetches a stored blob by a map that it has from another: serve that torrent, too."""
        if live.hashes:
            self._owner.wants(live, MAPPED)
        else:
            self._begin(live)

    def _begin(self, live: Live) -> None:
        if not live.mapping:
            live.mapping = True
            self._scope.spawn(self._make(live))

    async def _make(self, live: Live) -> None:
        try:
            if live.gone:
                return
            work = partial(chunk_map, os.dup(live.source), live.cut)
            live.hashes = await self._loop.run_in_executor(self._pool, work)
        except StorageError as error:
            _log.warning("no chunk map", digest=live.exchange.name, error=str(error))
            return
        finally:
            live.mapping = False
            nodes = self._waiting.pop(live, set())
        self._owner.wants(live, MAPPED)
        for node in nodes:
            self._answer(live, node)

    def _answer(self, live: Live, node: bytes) -> None:
        if live.gone:
            return
        self._owner.wants(live, MAPPED)
        for start in range(0, len(live.hashes), MAP_PART):
            part = live.hashes[start : start + MAP_PART]
            self._owner.send(node, MapPart(live.number, start // SHA1, part))
