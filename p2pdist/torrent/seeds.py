"""Which stored blobs libtorrent has loaded: a bounded number, those that neighbours wanted last."""

from __future__ import annotations

from collections import OrderedDict

from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts

_UNWANTED = 30.0  # seconds after which a blob that no neighbour wants is unloaded


class Seeds:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._loaded: OrderedDict[Live, None] = OrderedDict()  # the longest unwanted first

    def want(self, live: Live, torrents: int) -> None:
        """A neighbour wants a stored blob: load these torrents of it, on top of what is."""
        live.want |= torrents
        self._loaded[live] = None
        self._loaded.move_to_end(live)
        while len(self._loaded) > self._parts.settings.max_torrents:
            self._unload(next(iter(self._loaded)))
        self._parts.torrents.settle(live)

    def drop(self, live: Live) -> None:
        """The blob is not served any more."""
        self._loaded.pop(live, None)

    def look(self, live: Live, now: float) -> None:
        """Unload what nobody wants."""
        if live.want and now - live.wanted_at > _UNWANTED:
            if self._parts.near.unfinished(live):
                live.wanted_at = now
            else:
                self._unload(live)

    def _unload(self, live: Live) -> None:
        del self._loaded[live]
        live.want = 0
        self._parts.torrents.settle(live)
