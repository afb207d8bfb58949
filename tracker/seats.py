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
from tracker.model import Node, Registry, Rollout, Seat, State, Swarm
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
            swarm = self._state.swarms.get(want.digest, {}).get(want.size) or self._born(now, join, want, total)
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

    def _born(self, now: float, join: messages.Join, want: messages.Want, total: int) -> Swarm | None:
        if len(self._state.swarms) >= self._rules.max_swarms:
            self._state.counters.over_quota += 1
            return None
        chunk_size = want.chunk_size
        if not valid_chunk_size(want.size, chunk_size):
            chunk_size = chunk_size_for(total, want.size)
        rollout = self._rollout(join)
        rollout.next_order += 1
        holders = self._state.holders_of(want.digest)
        swarm = Swarm(want.digest, want.size, chunk_size, rollout, rollout.next_order, holders, now)
        if want.have and now < self._state.started + self._rules.settle_window:
            swarm.hold_until = now + self._rules.settle  # a tracker that restarted: others will say what they have
            self._state.timers.at(swarm.hold_until, lambda later, out: self._settled(later, swarm, out))
        rollout.swarms.append(swarm)
        gateways.born(self._state, swarm)
        self._state.swarms.setdefault(want.digest, {})[want.size] = swarm
        return swarm

    def _settled(self, now: float, swarm: Swarm, out: Outbox) -> None:
        if not swarm.over:
            self.streams.reconsider(now, swarm, out)
            self.leases.want(now, swarm.rollout, out)

    def _rollout(self, join: messages.Join) -> Rollout:
        name = (join.rollout, join.registry)
        rollout = self._state.rollouts.get(name)
        if rollout is None or rollout.next_order >= self._rules.max_swarms_per_rollout:
            registry = self._state.registries.get(join.registry)
            if registry is None:
                registry = self._state.registries[join.registry] = Registry(join.registry)
            self._rollouts_born += 1
            rollout = Rollout(join.rollout, self._rollouts_born, registry, self._rules.first_credits)
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
        self.leases.enlist(seat)

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
            self._end(now, swarm)
        if node.lone:
            self.streams.serve(now, node, out)

    def _end(self, now: float, swarm: Swarm) -> None:
        """Nobody waits for the blob any more."""
        swarm.over = True
        swarm.missing = 0
        sizes = self._state.swarms[swarm.digest]
        del sizes[swarm.size]
        if not sizes:
            del self._state.swarms[swarm.digest]
            self._forget_holders(swarm.digest)
        rollout = swarm.rollout
        rollout.swarms.remove(swarm)
        rollout.cursor = 0
        if not rollout.swarms:
            registry = rollout.registry
            del registry.rollouts[rollout]
            registry.queue.pop(rollout, None)
            name = (rollout.id, registry.name)
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

    def serve(self, node: Node, digest: str) -> None:
        """A live node is among the blob's holders from now on."""
        holders = self._state.holders_of(digest)
        holders.add(node)
        if len(holders) == 1:
            for swarm in self._state.swarms.get(digest, {}).values():
                swarm.missing = 0  # everybody can get all of it from there

    def _introduce(self, node: Node, digest: str, out: Outbox) -> None:
        for swarm in self._state.swarms.get(digest, {}).values():
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
        for swarm in self._state.swarms.get(digest, {}).values():
            gateways.left(self._state, swarm, node, out)
        if not holders:
            self._forget_holders(digest)
            for swarm in list(self._state.swarms.get(digest, {}).values()):
                self.streams.reconsider(now, swarm, out)

    def _forget_holders(self, digest: str) -> None:
        """Drop an empty roster that no swarm shares."""
        if not self._state.holders.get(digest) and digest not in self._state.swarms:
            self._state.holders.pop(digest, None)
