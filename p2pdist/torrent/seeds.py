"""Which stored blobs libtorrent has loaded: a bounded number of those that neighbours want, in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts

_UNWANTED = 30.0  # seconds after which a blob that no neighbour wants is unloaded
_TURN = 10.0  # seconds that a blob stays loaded while others wait


class Seeds:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._loaded: OrderedDict[Live, float] = OrderedDict()  # since when, the longest first
        self._waiting: OrderedDict[Live, int] = OrderedDict()  # and which torrents

    def want(self, live: Live, torrents: int) -> None:
        """A neighbour wants a stored blob: load these torrents of it, on top of what is, now or in its turn."""
        if live in self._loaded:
            live.want |= torrents
            self._parts.torrents.settle(live)
            return
        self._waiting[live] = self._waiting.get(live, 0) | torrents
        self._fill(asyncio.get_running_loop().time())

    def drop(self, live: Live) -> None:
        """The blob is not served any more."""
        self._loaded.pop(live, None)
        self._waiting.pop(live, None)

    def look(self, now: float) -> None:
        """Time passed: unload what nobody wants, and load what waits."""
        for live in list(self._loaded):
            if self._parts.near.unfinished(live):
                live.wanted_at = now
            elif now - live.wanted_at > _UNWANTED:
                self._unload(live)
        self._fill(now)

    def _fill(self, now: float) -> None:
        while self._waiting:
            if len(self._loaded) >= self._parts.settings.max_torrents and not self._make_room(now):
                return
            live, torrents = self._waiting.popitem(last=False)
            self._loaded[live] = now
            live.want |= torrents
            self._parts.torrents.settle(live)

    def _make_room(self, now: float) -> bool:
        """Unload one that nobody wants, or that had its turn."""
        for live, since in self._loaded.items():
            wanted = bool(self._parts.near.unfinished(live))
            if not wanted or now - since > _TURN:
                if wanted:
                    self._waiting[live] = live.want
                self._unload(live)
                return True
        return False

    def _unload(self, live: Live) -> None:
        del self._loaded[live]
        live.want = 0
        self._parts.torrents.settle(live)
