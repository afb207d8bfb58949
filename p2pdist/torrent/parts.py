"""What the engine's parts share: the blobs, the neighbours, libtorrent. Made by `engine`, complete once it started."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pdist.swarm.engine import EngineStats
from p2pdist.torrent.live import Live
from p2pdist.torrent.near import Near
from p2pdist.torrent.settings import TorrentSettings

if TYPE_CHECKING:
    from p2pdist.swarm.engine import Host
    from p2pdist.torrent.links import Links
    from p2pdist.torrent.maps import Maps
    from p2pdist.torrent.proving import Prover
    from p2pdist.torrent.torrents import Torrents
    from p2pdist.torrent.wire import AnyFrame


@dataclass(eq=False)
class Parts:
    """See the module."""

    settings: TorrentSettings
    node: bytes
    rng: random.Random
    stats: EngineStats = field(default_factory=EngineStats)
    lives: dict[str, Live] = field(default_factory=dict)  # in the order in which they are fetched
    near: Near = field(default_factory=Near)

    host: Host = field(init=False)
    links: Links = field(init=False)
    torrents: Torrents = field(init=False)
    maps: Maps = field(init=False)
    prover: Prover = field(init=False)

    def send(self, node: bytes, frame: AnyFrame) -> None:
        """A frame to a neighbour, if it is there."""
        link = self.links.neighbours.get(node)
        if link is not None:
            link.send(frame)

    def tell(self, live: Live, frame: AnyFrame) -> None:
        """A frame to the neighbours in the blob's swarm."""
        for node, _ in self.near.of(live):
            self.send(node, frame)
