"""Several nodes find the same digest wrong at the same time: one reads again what others attested, the rest wait. Pure.

Without this each of them would read up to a copy from upstream, for the same false chunks. What the one finds is a
hint for the others, no more: they prove the whole digest themselves, and doubt again if it is still wrong.
"""

from __future__ import annotations

import random
from functools import partial

from p2pdist.protocol import messages
from tracker.timers import Outbox, Timers

PATIENCE = 10.0  # seconds that a search has, and ...
LEAST_RATE = 1024 * 1024  # ... bytes a second: then another node searches as well
LASTS = 30.0  # seconds for which what was found is told to those that doubt later
MOST = 1024  # digests in doubt at once
_Key = tuple[str, int, int]  # digest, size, chunk size


class _Search:
    def __init__(self) -> None:
        self.waiting: dict[bytes, None] = {}
        self.searcher: bytes | None = None  # whose turn it is
        self.searched: set[bytes] = set()  # who had a turn and may still say what it found
        self.told: set[bytes] = set()  # who knows what was found last
        self.found: list[int] = []
        self.until = 0.0  # when that is forgotten


class Searches:
    """One search at a time for each digest, size and cut."""

    def __init__(self, timers: Timers, rng: random.Random) -> None:
        self._timers = timers
        self._rng = rng
        self._searches: dict[_Key, _Search] = {}

    def __len__(self) -> int:
        return len(self._searches)

    def doubts(self, now: float, node: bytes, message: messages.Doubts, out: Outbox) -> None:
        """A node found the whole digest wrong."""
        key = (message.digest, message.size, message.chunk_size)
        search = self._searches.get(key)
        if search is None:
            if len(self._searches) >= MOST:
                out.append((node, messages.Search(message.digest)))
                return
            search = self._searches[key] = _Search()
        if search.found and now < search.until and node not in search.told:
            search.told.add(node)
            out.append((node, messages.Suspects(message.digest, message.chunk_size, search.found)))
            return
        search.waiting[node] = None
        self._start(key, search, now, out)

    def settled(self, now: float, node: bytes, message: messages.Settled, out: Outbox) -> None:
        """A search has ended well."""
        for key, search in self._searches.items():
            if (key[0], key[2]) != (message.digest, message.chunk_size) or node not in search.searched:
                continue
            search.searched.discard(node)
            if search.searcher == node:
                search.searcher = None
            if message.indexes:
                search.found, search.until = message.indexes, now + LASTS
                self._timers.at(search.until, partial(self._forget, key, search))
                told = messages.Suspects(message.digest, message.chunk_size, message.indexes)
                out += [(other, told) for other in search.waiting]
                search.told = {node, *search.waiting}
                search.waiting.clear()
            self._start(key, search, now, out)

    def gone(self, now: float, node: bytes, out: Outbox) -> None:
        """A node's session is over."""
        for key, search in list(self._searches.items()):
            search.waiting.pop(node, None)
            search.searched.discard(node)
            if search.searcher == node:
                search.searcher = None
                self._start(key, search, now, out)
            self._forget(key, search, now, out)

    def _start(self, key: _Key, search: _Search, now: float, out: Outbox) -> None:
        if search.searcher is not None or not search.waiting:
            return
        node = search.searcher = self._rng.choice(list(search.waiting))
        del search.waiting[node]
        search.searched.add(node)
        out.append((node, messages.Search(key[0])))
        self._timers.at(now + PATIENCE + key[1] / LEAST_RATE, partial(self._late, key, search, node))

    def _late(self, key: _Key, search: _Search, node: bytes, now: float, out: Outbox) -> None:
        if self._searches.get(key) is search and search.searcher == node and node in search.searched:
            search.searcher = None
            self._start(key, search, now, out)
            self._forget(key, search, now, out)

    def _forget(self, key: _Key, search: _Search, now: float, out: Outbox) -> None:
        over = search.searcher is None and not search.waiting and now >= search.until
        if over and self._searches.get(key) is search:
            del self._searches[key]
