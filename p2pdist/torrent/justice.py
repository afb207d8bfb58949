"""Who is left alone: peers that sent wrong bytes, and for a moment those that fell silent.

BitTorrent knows a peer by its address only, so a banned node's host is shut out with it.
"""

from __future__ import annotations

import asyncio

import structlog

from p2pdist.errors import PeerError
from p2pdist.torrent.blame import Verdict
from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.wire import Bad

_log = structlog.get_logger("p2pdist.torrent")
_DEAD = 3.0  # seconds that a silent neighbour's host is shut out, so that libtorrent gives up what it asked there
_WATCH = 120.0  # seconds after a refused chunk in which it is noticed who sends what


class Justice:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._banned: dict[bytes, float] = {}
        self._blocked: dict[str, float] = {}
        self._refused_at = 0.0

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def admits(self, node: bytes) -> bool:
        """Whether a link with this node is wanted."""
        return node != self._parts.node and self._banned.get(node, 0.0) <= self._now()

    def ban(self, node: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while."""
        until = self._now() + seconds
        self._banned[node] = until
        link = self._parts.links.neighbours.get(node)
        if link is not None:
            self._block(link.host, until)
            link.close(PeerError("banned", peer=node.hex()))

    def dead(self, node: bytes, host: str) -> None:
        """A neighbour was silent for too long."""
        parts = self._parts
        parts.stats.stalls += 1
        if all(link.host != host for link in parts.links.neighbours.values()):
            self._block(host, self._now() + _DEAD)
        parts.host.peer_dead(node)

    def refused(self, live: Live, index: int, data: bytes) -> None:
        """A chunk matches no attestation."""
        parts = self._parts
        parts.stats.refused += 1
        _log.warning("a chunk is refused", digest=live.exchange.name, chunk=index)
        self._refused_at = self._now()
        parts.torrents.watch(True)  # from now on it is seen who sends what
        self.disown(live, index)
        verdict = live.blame.refused(index, data, self._now())
        if verdict is not None:
            self.condemn(live, verdict)

    def disown(self, live: Live, index: int) -> None:
        """libtorrent has wrong bytes: neighbours may have got them."""
        self._parts.tell(live, Bad(live.number, index))
        self._parts.torrents.load_anew(live)

    def condemn(self, live: Live, verdict: Verdict) -> None:
        """A peer is guilty."""
        sender, settings = verdict.sender, self._parts.settings
        _log.warning("a peer is left alone", peer=sender.node.hex()[:12], host=sender.host, error=verdict.why)
        if sender.host:
            self._block(sender.host, self._now() + settings.ban)
        if sender.node:
            self.ban(sender.node, settings.ban)
            self._parts.maps.distrusted(live, sender.node)
            if verdict.certain:
                self._parts.host.peer_lied(sender.node, live.exchange, verdict.index, verdict.why)

    def look(self, now: float) -> None:
        """Time passed."""
        if any(until <= now for until in self._blocked.values()):
            self._blocked = {host: until for host, until in self._blocked.items() if until > now}
            self._apply()
        if now - self._refused_at > _WATCH:
            self._parts.torrents.watch(False)

    def _block(self, host: str, until: float) -> None:
        self._blocked[host] = max(until, self._blocked.get(host, 0.0))
        self._apply()

    def _apply(self) -> None:
        for session in self._parts.torrents.sessions.values():
            session.block(self._blocked)
