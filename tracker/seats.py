"""Who takes part in which swarm: joining, leaving, holding whole blobs. Pure.

Keeps the invariants: a swarm's `members` are its live seats; `holders` the live nodes that hold the blob; its tally
counts what live members say they have; a swarm without seats is over, and a rollout without swarms is gone.
"""

from __future__ import annotations

import sys

from p2pdist.protocol import messages
from p2pdist.protocol.chunks import chunk_size_for, valid_chunk_size
from tracker import gateways
from tracker.bitmaps import from_wire
from tracker.model import Family, Node, Registry, Rollout, Seat, State, Swarm
from tracker.streams import Streams
from tracker.timers import Outbox


class Seats:
    """Changes who takes part, and lets leases and streams follow."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rules = state.rules
        self.streams = Streams(state)
        self.leases = self.streams.leases
        self._rollouts_born = 0

    # --- joining ---

    def take(
        self, now: float, node: Node, join: messages.Join, want: messages.Want, total: int, out: Outbox
    ) -> Seat | None:
        """The node's seat for what it wants, taken now or before; None over a limit. `total`: bytes of the join."""
        if want.digest in node.holds:  # it wouldn't ask
            self.unhold(now, node, want.digest, out)
        seat = node.seats.get(want.digest)
        if seat is not None and seat.swarm.size != want.size:
            self.stand_up(now, seat, out)
            seat = None
        if seat is None:
            if len(node.seats) >= self._rules.max_swarms_per_node:
                self._state.counters.over_quota += 1
                return None
            found = self._state.swarms.get(want.digest, {}).get((want.size, node.zone))
            swarm = found or self._born(now, node.zone, join, want, total, out)
            if swarm is None:
                return None
            seat = node.seats[swarm.digest] = swarm.seats[node] = Seat(node, swarm, join.registry)
            self.sit(seat)
            gateways.came(swarm, node, out)
        if want.chunk_size == seat.swarm.chunk_size:
            self.learn(seat, from_wire(want.have, seat.swarm.count))
            for index in want.reading:
                if index < seat.swarm.count:
                    self.leases.adopt(now, seat, index)
            if want.streaming:
                self.streams.adopt(seat, out)
        return seat

    def _born(
        self, now: float, zone: str, join: messages.Join, want: messages.Want, total: int, out: Outbox
    ) -> Swarm | None:
        if len(self._state.swarms) >= self._rules.max_swarms:
            self._state.counters.over_quota += 1
            return None
        siblings = [found for (size, _), found in self._state.swarms.get(want.digest, {}).items() if size == want.size]
        chunk_size = siblings[0].chunk_size if siblings else want.chunk_size
        if not valid_chunk_size(want.size, chunk_size):
            chunk_size = chunk_size_for(total, want.size)
        rollout = self._rollout(join, zone)
        rollout.next_order += 1
        near, all_ = self._state.holders_near(want.digest, zone), self._state.holders_of(want.digest)
        swarm = Swarm(want.digest, want.size, chunk_size, rollout, rollout.next_order, near, now, all_)
        if want.have and now < self._state.started + self._rules.settle_window:
            swarm.hold_until = now + self._rules.settle  # a tracker that restarted: others will say what they have
            self._state.timers.at(swarm.hold_until, lambda later, out: self._settled(later, swarm, out))
        rollout.swarms.append(swarm)
        gateways.born(self._state, swarm, now)
        self._state.swarms.setdefault(want.digest, {})[want.size, zone] = swarm
        for sibling in siblings:
            sibling.siblings.append(swarm)
            swarm.siblings.append(sibling)
            self.streams.reconsider(now, sibling, out)
        return swarm

    def _settled(self, now: float, swarm: Swarm, out: Outbox) -> None:
        if not swarm.over:
            self.streams.reconsider(now, swarm, out)
            self.leases.want(now, swarm.rollout, out)

    def _rollout(self, join: messages.Join, zone: str) -> Rollout:
        name = (join.rollout, join.registry, zone)
        rollout = self._state.rollouts.get(name)
        if rollout is None or rollout.next_order >= self._rules.max_swarms_per_rollout:
            registry = self._state.registries.get(join.registry)
            if registry is None:
                registry = self._state.registries[join.registry] = Registry(join.registry)
            self._rollouts_born += 1
            family = self._state.families.setdefault((join.rollout, join.registry), Family())
            rollout = Rollout(join.rollout, self._rollouts_born, registry, self._rules.first_credits, zone, family)
            registry.rollouts[rollout] = None
            self._state.rollouts[name] = rollout
        return rollout

    def sit(self, seat: Seat) -> None:
        """A live node takes part."""
        swarm = seat.swarm
        swarm.near += seat.node.reads and seat.node not in swarm.members
        swarm.members.add(seat.node)
        swarm.tally.add(seat.known)
        swarm.missing &= ~seat.known
        self.leases.enlist(seat, new=True)

    def learn(self, seat: Seat, chunks: int) -> int:
        """The node has these chunks; returns those of them that nobody was known to have."""
        swarm = seat.swarm
        new = chunks & ~seat.known
        if not new:
            return 0
        first = new & ~swarm.tally.some()
        seat.known |= new
        swarm.tally.add(new)
        swarm.missing &= ~new
        return first

    # --- leaving ---

    def withdraw(self, now: float, seat: Seat, out: Outbox) -> None:
        """The node takes no part, for now at least; what it was reading is leased again."""
        swarm = seat.swarm
        if seat.node not in swarm.members:
            return
        swarm.members.discard(seat.node)
        swarm.near -= seat.node.reads
        gateways.left(self._state, swarm, seat.node, out)
        swarm.tally.remove(seat.known)
        for lease in list(seat.leases):
            self.leases.take_back(now, lease, out)
        if swarm.alone is not None and swarm.alone.node is seat.node:
            self.streams.end(now, swarm, out)
        if seat.node.reads and not swarm.near and swarm.far_ring:
            self.leases.want(now, swarm.rollout, out)
        self.leases.spread(now, swarm, out)

    def stand_up(self, now: float, seat: Seat, out: Outbox) -> None:
        """The node leaves the swarm for good."""
        swarm, node = seat.swarm, seat.node
        node.seats.pop(swarm.digest, None)
        swarm.seats.pop(node, None)
        swarm.votes.pop(node, None)
        swarm.denied.discard(node)
        self.withdraw(now, seat, out)
        if swarm.seats:
            self.streams.reconsider(now, swarm, out)
        elif not swarm.over:
            siblings = list(swarm.siblings)
            self._end(now, swarm)
            for sibling in siblings:
                self.streams.reconsider(now, sibling, out)
                self.leases.want(now, sibling.rollout, out)
        if node.lone:
            self.streams.serve(now, node, out)

    def _end(self, now: float, swarm: Swarm) -> None:
        """Nobody waits for the blob any more."""
        swarm.over = True
        swarm.missing = 0
        sizes = self._state.swarms[swarm.digest]
        del sizes[swarm.size, swarm.rollout.zone]
        if not sizes:
            del self._state.swarms[swarm.digest]
            self._forget_holders(swarm.digest)
        for sibling in swarm.siblings:
            sibling.siblings.remove(swarm)
        rollout = swarm.rollout
        rollout.swarms.remove(swarm)
        rollout.cursor = 0
        if not rollout.swarms:
            registry = rollout.registry
            del registry.rollouts[rollout]
            registry.queue.pop(rollout, None)
            family = rollout.family
            del family.rollouts[rollout]
            if not any(other.zone == family.reader for other in family.rollouts):
                family.reader = None
            if not family.rollouts:
                del self._state.families[rollout.id, registry.name]
            name = (rollout.id, registry.name, rollout.zone)
            if self._state.rollouts.get(name) is rollout:
                del self._state.rollouts[name]
            self.leases.forget_registry(now, registry)

    # --- whole blobs ---

    def hold(self, now: float, node: Node, digest: str, out: Outbox) -> None:
        """A live node has the blob. If it waited for it, it does no more; if not, some of those who wait are told."""
        digest = sys.intern(digest)  # every node names it in a string of its own: thousands of nodes, hundreds of blobs
        seat = node.seats.get(digest)
        if digest not in node.holds and len(node.holds) >= self._rules.max_holds_per_node:
            self._state.counters.over_quota += 1
        elif digest not in node.holds:
            node.holds.add(digest)
            self.serve(node, digest)
            for swarm in self._state.swarms.get(digest, {}).values():
                gateways.came(swarm, node, out)
            if seat is None:
                self._introduce(node, digest, out)
        if seat is not None:
            self.stand_up(now, seat, out)
        for swarm in list(self._state.swarms.get(digest, {}).values()):
            self.streams.reconsider(now, swarm, out)
            if swarm.apart:
                self.leases.want(now, swarm.rollout, out)

    def serve(self, node: Node, digest: str) -> None:
        """A live node is among the blob's holders from now on."""
        self._state.holders_of(digest).add(node)
        if node.zone:
            self._state.holders_near(digest, node.zone).add(node)
        for swarm in self._state.swarms.get(digest, {}).values():
            if len(swarm.holders) == 1 and node in swarm.holders:
                swarm.missing = 0  # everybody can get all of it from there

    def _introduce(self, node: Node, digest: str, out: Outbox) -> None:
        for swarm in self._state.swarms.get(digest, {}).values():
            if node not in swarm.holders:
                continue  # of another zone
            members = swarm.members.sample(self._state.rng, max(1, self._rules.degree // 2))
            for member in members:
                peer = gateways.meet(swarm, member, node)
                if peer is not None:
                    out.append((member.id, messages.Neighbours([peer])))

    def unhold(self, now: float, node: Node, digest: str, out: Outbox) -> None:
        """The node has the blob no more."""
        node.holds.discard(digest)
        self.unserve(now, node, digest, out)

    def unserve(self, now: float, node: Node, digest: str, out: Outbox) -> None:
        """The node is not among the blob's holders, for now at least."""
        holders = self._state.holders.get(digest)
        if holders is None:
            return
        holders.discard(node)
        if node.zone:
            self._state.holders_near(digest, node.zone).discard(node)
        for swarm in self._state.swarms.get(digest, {}).values():
            gateways.left(self._state, swarm, node, out)
        self._forget_holders(digest)
        for swarm in list(self._state.swarms.get(digest, {}).values()):
            if not holders:
                self.streams.reconsider(now, swarm, out)
            if node.zone:
                self.leases.want(now, swarm.rollout, out)

    def _forget_holders(self, digest: str) -> None:
        """Drop empty rosters that no swarm shares."""
        if digest in self._state.swarms:
            return
        if not self._state.holders.get(digest):
            self._state.holders.pop(digest, None)
        zones = self._state.zoned.get(digest)
        if zones is not None:
            for zone in [zone for zone, roster in zones.items() if not roster]:
                del zones[zone]
            if not zones:
                del self._state.zoned[digest]
