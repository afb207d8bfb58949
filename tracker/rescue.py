"""Nodes that others call dead, and chunks that nobody finds. Pure."""

from __future__ import annotations

import math

from p2pdist.protocol import limits, messages
from tracker import gateways
from tracker.model import Lease, Node, Seat, State, Swarm
from tracker.seats import Seats
from tracker.timers import Outbox

MISSED_FOR = 30.0  # seconds after which an earlier Miss no longer counts
SLOW = 2.5  # seconds that the first half of the first chunk from another zone may take
FEW = 64  # nodes of a swarm of which all are counted that miss a chunk:
MOST = 3  # so many ...
MOST_OF = 0.66  # ... and such a share of them ...
HAD = 2.0  # ... so many times `late_after` after somebody said that he had read it
PACES = 4.0  # a missed read from another zone is late after so many times the usual


class Rescue:
    """Votes and misses."""

    def __init__(self, state: State, seats: Seats) -> None:
        self._state = state
        self._rules = state.rules
        self._seats = seats

    # --- dead nodes ---

    def vote(self, now: float, node: Node, peer: Node, out: Outbox) -> None:
        """`node` says that `peer` is dead. Two who share a swarm with it, or its only companion, are enough."""
        if node is peer or not node.live or not peer.live or not self._share(node, peer):
            return
        since = now - self._rules.vote_window
        peer.votes = {voter: when for voter, when in peer.votes.items() if when > since}
        peer.votes[node] = now
        if len(peer.votes) >= min(2, self._companions(peer)):
            self._state.counters.deaths += 1
            self._bury(now, peer, out)

    def _bury(self, now: float, peer: Node, out: Outbox) -> None:
        peer.votes.clear()
        peer.live = False
        for seat in list(peer.seats.values()):
            self._seats.withdraw(now, seat, out)
            self._seats.streams.reconsider(now, seat.swarm, out)
        for digest in list(peer.holds):
            self._seats.unserve(now, peer, digest, out)

    def revive(self, now: float, node: Node, out: Outbox) -> None:
        """A node that was called dead shows progress: it takes part again. Its leases went to others."""
        node.live = True
        for digest in node.holds:
            self._seats.serve(node, digest)
        for seat in list(node.seats.values()):
            self._seats.sit(seat)
            gateways.came(seat.swarm, node, out)
            self._seats.streams.reconsider(now, seat.swarm, out)
            self._seats.leases.want(now, seat.swarm.rollout, out)

    def _share(self, node: Node, peer: Node) -> bool:
        return not (
            node.seats.keys().isdisjoint(peer.seats)
            and node.seats.keys().isdisjoint(peer.holds)
            and node.holds.isdisjoint(peer.seats)
        )

    def _companions(self, peer: Node) -> int:
        """How many others could vote, as far as it matters: 1 or 2."""
        for seat in peer.seats.values():
            if seat.swarm.crowd() > 2:
                return 2
        for digest in peer.holds:
            for swarm in self._state.swarms.get(digest, {}).values():
                if swarm.crowd() > 2:
                    return 2
        return 1

    # --- chunks that nobody finds ---

    def miss(self, now: float, seat: Seat, wanted: list[int], out: Outbox) -> None:
        """The node and its neighbours lack these chunks, and nothing comes.

        A chunk that no live node is known to have is leased again at once; a read from another zone without progress
        goes to another node (whose read from upstream is late is found without being told);
        for the others the node is told who should have them, and if that doesn't help, they are leased again too.
        """
        swarm = seat.swarm
        known = swarm.known()
        carried = gateways.brought_to(swarm, seat.node)
        orphans = 0
        sources: dict[Node, None] = {}
        for index in wanted:
            bit = 1 << index
            if index >= swarm.count or swarm.missing & bit:
                continue
            lease = swarm.leases.get(index)
            if lease is not None:
                if lease.source is not None and lease.seat is not seat and self._late(now, lease):
                    self._seats.leases.overdue(now, lease, out)
            elif not known & bit or (not carried and self._missed_again(now, seat, index)):
                orphans |= bit
            else:
                source = swarm.source.get(index)
                if source is not None and source.live and source is not seat.node:
                    sources[source] = None
        self._lease_again(now, swarm, orphans, out)
        if swarm.apart:
            self._seats.leases.want(now, swarm.rollout, out)
        for holder in swarm.holders.sample(self._state.rng, 2):
            sources[holder] = None
        if sources:
            infos = dict(gateways.across(swarm, seat.node))
            for source in sources:
                info = gateways.meet(swarm, seat.node, source)
                if info is not None:
                    infos[source] = info
            if infos:
                out.append((seat.node.id, messages.Neighbours(list(infos.values())[: limits.MAX_NEIGHBOURS])))

    def _lease_again(self, now: float, swarm: Swarm, orphans: int, out: Outbox) -> None:
        if not orphans:
            return
        orphans &= ~swarm.leased
        self._state.counters.regranted += orphans.bit_count()
        swarm.missing |= orphans
        swarm.rollout.cursor = 0
        self._seats.leases.want(now, swarm.rollout, out)

    def _late(self, now: float, lease: Lease) -> bool:
        pace = lease.seat.swarm.rollout.carry_pace or SLOW
        return now - lease.touched >= max(self._rules.miss_patience, PACES * pace)

    def _missed_again(self, now: float, seat: Seat, index: int) -> bool:
        """Whether others (or the only other one) missed the chunk long ago, though somebody should have it.

        Where nearly all of a few miss it, it doesn't take long: a chunk on its way is with some of them by then.
        """
        swarm = seat.swarm
        when, who, all_ = swarm.missed.get(index, (-math.inf, seat.node, set()))
        new = now - when > MISSED_FOR
        if new:
            when, who, all_ = swarm.missed[index] = (now, seat.node, set())
        crowd = swarm.crowd()
        if crowd <= FEW:
            all_.add(seat.node)
        sole = (
            len(swarm.gateways) > 1 and swarm.gateways.get(seat.node.site) is seat.node
        )  # who else of its site could say?
        old = now - swarm.since.get(index, now) >= HAD * self._rules.late_after
        most = old and len(all_) >= max(MOST, MOST_OF * crowd)
        if not most and (new or now - when < self._rules.miss_again or (who is seat.node and crowd > 2 and not sole)):
            return False
        del swarm.missed[index]
        return True
