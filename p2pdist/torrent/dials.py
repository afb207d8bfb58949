"""Which neighbours this node opens BitTorrent connections to: a few of each swarm, so that its graph has degree 6."""

from __future__ import annotations

import asyncio

from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.wire import Dial

_TOGETHER = 0.02  # seconds in which neighbours to dial are collected


class Dials:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def look(self, live: Live) -> None:
        """Dial who should be dialled, together."""
        if not live.dialling and self._candidates(live):
            live.dialling = True
            asyncio.get_running_loop().call_later(_TOGETHER, self._dial, live)

    def gone(self, live: Live, node: bytes) -> None:
        """A neighbour is not in the swarm any more, or not in the same torrent."""
        live.dialled.discard(node)
        live.edges.discard(node)

    def _candidates(self, live: Live) -> list[bytes]:
        """Neighbours with the torrent that is loaded here, and no connection yet."""
        loaded = live.current
        if loaded is None or not live.unfinished or len(live.dialled) >= self._parts.settings.dials:
            return []
        return [
            node
            for node, theirs in self._parts.near.of(live)
            if theirs.torrents & loaded.kind
            and node not in live.dialled
            and node not in live.edges
            and not (theirs.whole and live.map_asked is not None)
        ]

    def _dial(self, live: Live) -> None:
        live.dialling = False
        parts = self._parts
        free = [] if live.gone else self._candidates(live)
        parts.rng.shuffle(free)
        peers: list[tuple[str, int]] = []
        for node in free[: parts.settings.dials - len(live.dialled)]:
            link = parts.links.neighbours[node]
            if link.peer is not None:
                live.dialled.add(node)
                link.send(Dial(live.number))
                peers.append((link.host, link.peer.port))
        parts.torrents.connect(live, peers)
