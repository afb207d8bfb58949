"""Pieces on their way in and out of libtorrent: those that this node gives it, and barriers behind those that came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from p2pdist.errors import StorageError
from p2pdist.scope import Scope
from p2pdist.torrent.files import Cut, read_chunk
from p2pdist.torrent.live import Live

_GIVEN = 16  # chunks given at a time


class PiecesOwner(Protocol):
    """Who is told."""

    def arrived(self, live: Live, indexes: Iterable[int]) -> None:
        """libtorrent has all of these pieces; they are on their way into the file."""


class Pieces:
    """See the module. `flush`: seconds between two barriers of a torrent, at least."""

    def __init__(self, owner: PiecesOwner, flush: float, pool: ThreadPoolExecutor) -> None:
        self._owner = owner
        self._interval = flush
        self._pool = pool
        self._moved: set[Live] = set()  # pieces or barriers came in this look

    def start(self, scope: Scope) -> None:
        """Ready."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()

    def give(self, live: Live, index: int) -> None:
        """Give libtorrent a proved chunk that did not come through it."""
        if live.current is None or live.arrived >> index & 1:
            return  # given when the torrent is loaded, or compared with what came
        live.to_give.add(index)
        if not live.giving:
            live.giving = True
            self._scope.spawn(self._give(live))

    async def _give(self, live: Live) -> None:
        try:
            while live.to_give and not live.gone:
                loaded = live.current
                inject = loaded.session.injector(loaded.metainfo.key) if loaded is not None else None
                if inject is None:
                    return
                batch = [live.to_give.pop() for _ in range(min(len(live.to_give), _GIVEN))]
                live.given.update(dict.fromkeys(batch, self._loop.time()))
                await self._loop.run_in_executor(self._pool, partial(_inject, inject, live.source, live.cut, batch))
        except StorageError as error:
            live.exchange.fail(error)
        finally:
            live.giving = False

    def moved(self, live: Live) -> None:
        """A piece or a barrier came."""
        self._moved.add(live)

    def looked(self) -> Iterable[Live]:
        """That is all for the moment: barriers are asked for. For which blobs something came."""
        moved, self._moved = self._moved, set()
        for live in moved:
            self.flush(live)
        return moved

    def flush(self, live: Live) -> None:
        """Ask for a flush barrier if one is due, or once it is."""
        loaded, now = live.current, self._loop.time()
        if loaded is None or live.gone:
            return
        if live.flush_due(now, self._interval):
            loaded.session.flush(loaded.metainfo.key)
            self._owner.arrived(live, live.flushing or ())
        elif live.came and live.flushing is None and live.flush_timer is None:
            wait = live.flushed_at + self._interval - now
            live.flush_timer = self._loop.call_later(wait, self._flush_now, live)

    def _flush_now(self, live: Live) -> None:
        live.flush_timer = None
        self.flush(live)


def _inject(inject: Callable[[int, bytes], None], source: int, cut: Cut, batch: list[int]) -> None:
    for index in batch:
        inject(index, read_chunk(source, cut, index))
