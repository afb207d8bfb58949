"""What the engine does because time passed. Times are loop times in seconds."""

from __future__ import annotations

from p2pdist.errors import PeerError
from p2pdist.torrent.alone import Orphaned, bits, choose
from p2pdist.torrent.dials import Dials
from p2pdist.torrent.justice import Justice
from p2pdist.torrent.live import COLD, Live
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.seeds import Seeds
from p2pdist.torrent.settings import TorrentTls
from p2pdist.torrent.wire import Claim

_MISS = 1.0  # before what nobody near has is reported, or that nobody near answers for a piece that is here
_LINGER = 60.0  # that a finished blob is served from the scratch file to those that fetch it
_COUNT = 0.5  # between two looks at libtorrent's counters
_CERTIFY = 10.0  # between two looks at this node's certificate
_GIVEN = 2.0  # after which a chunk that libtorrent did not confirm is given again
_FEW, _MORE = 5, 10  # with fewer neighbours than this, ask for so many


class Upkeep:
    """See the module."""

    def __init__(self, parts: Parts, seeds: Seeds, dials: Dials, justice: Justice) -> None:
        self.orphaned: Orphaned | None = None
        self._parts = parts
        self._seeds = seeds
        self._dials = dials
        self._justice = justice
        self._asked_more = 0.0
        self._counted = 0.0
        self._certified = 0.0
        self._certificate = self._cluster = ""

    def look(self, now: float) -> float:
        """Do what is due; in how many seconds to look again."""
        parts = self._parts
        parts.links.look_after(now, self._justice.dead)
        self._justice.look(now)
        for live in list(parts.lives.values()):
            if live.fetching and live.exchange.stored:
                self._look_at_finished(live, now)
            elif live.fetching:
                self._look_at(live, now)
        self._seeds.look(now)
        busy = [live for live in parts.lives.values() if live.unfinished]
        if busy:
            self._look_for_more(busy, now)
        if now - self._counted >= _COUNT:
            self._counted = now
            self._count()
        if now - self._certified >= _CERTIFY:
            self._certified = now
            self._look_at_certificate()
        return parts.settings.tick if busy else parts.settings.alive / 2

    def _look_at(self, live: Live, now: float) -> None:
        parts = self._parts
        if live.retry_at is not None and live.retry_at <= now:
            live.retry_at = None
            parts.torrents.settle(live)
        self._look_at_pieces(live, now)
        parts.maps.look(live, now)
        self._dials.look(live)

    def _look_at_pieces(self, live: Live, now: float) -> None:
        parts = self._parts
        for verdict in live.blame.overdue(now, lambda node, index: node in parts.near.claimants(live, index)):
            self._justice.condemn(live, verdict)
        for index, given in list(live.given.items()):
            if now - given > _GIVEN:
                parts.torrents.pieces.give(live, index)
        parts.torrents.pieces.flush(live)
        parts.prover.look_again(live)

    def _look_at_finished(self, live: Live, now: float) -> None:
        """Serve on from the scratch file to those that are connected; then from the blob, on demand."""
        self._look_at_pieces(live, now)  # what came last is to be answered for, too
        if not self._parts.near.unfinished(live) or now - live.moved > _LINGER:
            live.fetching = False
            live.dirty = True
            live.want = 0
            self._parts.torrents.settle(live)
            if self._parts.near.unfinished(live):
                self._seeds.want(live, COLD)

    def _look_for_more(self, busy: list[Live], now: float) -> None:
        parts = self._parts
        if len(parts.links.neighbours) < _FEW and now - self._asked_more > 1.0:
            self._asked_more = now
            parts.host.neighbours_wanted(_MORE)
        reading = any(live.leased for live in busy)
        for live in busy:
            lost = live.exchange.full & ~live.exchange.have & ~parts.near.claimed(live)
            missing = [index for index, since in live.landed.items() if lost >> index & 1 and now - since > _MISS]
            if not missing and not live.leased and now - live.moved > _MISS:
                missing = list(bits(lost))
            if missing and now - live.missed_at > _MISS:
                live.missed_at = now
                parts.host.chunks_missing(live.exchange, missing[:64])
            if self.orphaned is not None and not reading:
                reading = self._read_alone(live, lost & ~live.arrived, now, self.orphaned)

    def _read_alone(self, live: Live, wanted: int, now: float, orphaned: Orphaned) -> bool:
        parts = self._parts
        rivals = parts.near.unfinished(live)
        name = live.exchange.name
        mine = choose(name, wanted, rivals, live.claims, live.chunk_time, now, orphaned, parts.node, parts.rng)
        if mine is None:
            return False
        parts.tell(live, Claim(live.number, mine))
        parts.host.read_alone(live.exchange, mine)
        return True

    def _look_at_certificate(self) -> None:
        """libtorrent has copies: it is told when this node's certificate was renewed."""
        tls = self._parts.settings.tls
        material = tls.material() if tls is not None else None
        if material is not None and material.certificate != self._certificate:
            if material.cluster != self._cluster and self._cluster and tls is not None:
                self._move(tls)
            self._certificate, self._cluster = material.certificate, material.cluster
            for session in self._parts.torrents.sessions.values():
                session.certify()

    def _move(self, tls: TorrentTls) -> None:
        """Another authority signs for this node: libtorrent trusts the one that a torrent was loaded with only."""
        parts = self._parts
        for link in list(parts.links.neighbours.values()):
            if tls.identify(link.tls) != link.node:
                link.close(PeerError("its certificate is of another authority than ours", peer=link.node.hex()))
        for live in list(parts.lives.values()):
            parts.torrents.load_anew(live)

    def _count(self) -> None:
        sessions = self._parts.torrents.sessions.values()
        stats, totals = self._parts.stats, [session.counters for session in sessions]
        stats.bytes_in = sum(total.get("net.recv_payload_bytes", 0) for total in totals)
        stats.bytes_out = sum(total.get("net.sent_payload_bytes", 0) for total in totals)
        stats.bytes_redundant = sum(total.get("net.recv_redundant_bytes", 0) for total in totals)
        for session in sessions:
            session.post_counters()
