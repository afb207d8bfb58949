"""Zones: a chunk comes into a zone once, by one of its nodes, from upstream or from a node of another zone. Pure.

Every zone has a swarm of its own of each blob; its missing chunks are those that are not in the zone. Where another
zone has one, it is leased from there, to be read as any chunk is read from a peer, with its attestation. Where another
zone is reading one from upstream, this zone waits for it. One zone reads from upstream for all of them, the one whose
first read came fastest; another does while that one reads nothing. So a link between two zones carries each chunk
once, and the upstream gives it once (adr 0031).
"""

from __future__ import annotations

from collections.abc import Iterator

from tracker.bitmaps import indexes, lowest
from tracker.model import Lease, Node, Seat, State, Swarm

_DRAWN = 4  # nodes of a zone among which the least busy one is chosen
_TRIES = 2  # nodes that may fail to give a chunk before it is read from upstream
_CUT = 4  # reads from other zones that fail one after the other, to more than one node: they can't be reached
_CUT_FOR = 30.0  # seconds for which none is tried then
_FASTER = 0.5  # a zone whose read takes less than so much of the usual reads from upstream from then on


class Zones:
    """What each zone may read, and from where."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rules = state.rules

    # --- from upstream ---

    def readable(self, now: float, swarm: Swarm) -> int:
        """The missing chunks that the zone is to read from upstream, as things are."""
        if now < swarm.rollout.cut_until:
            return swarm.missing
        if not self._reads(swarm):
            return 0
        waits = self._elsewhere(swarm) & ~swarm.stuck
        for sibling in swarm.siblings:
            if sibling.alone is not None:
                waits |= sibling.full & ~sibling.known()
            waits |= sibling.leased
        return swarm.missing & ~waits

    def _reads(self, swarm: Swarm) -> bool:
        rollout = swarm.rollout
        family = rollout.family
        if len(family.rollouts) == 1:
            return True
        readers = [other for other in family.rollouts if other.zone == family.reader and other is not rollout]
        if family.reader is None:
            far = not swarm.near and any(sibling.near for sibling in swarm.siblings)
            return not rollout.credits_out and not far
        if family.reader == rollout.zone or not any(reader.credits_out for reader in readers):
            return True
        return not rollout.probed and not rollout.credits_out and bool(swarm.near)

    def read(self, lease: Lease, took: float) -> None:
        """The first half of a lease from upstream took so many seconds. The pace of the registry is as before."""
        rollout = lease.seat.swarm.rollout
        family = rollout.family
        if len(family.rollouts) == 1:
            family.reader = rollout.zone
            return
        readers = [other for other in family.rollouts if other.zone == family.reader]
        first = not rollout.probed
        rollout.probed = True
        if rollout in readers:
            return
        faster = first and took < _FASTER * rollout.registry.pace
        if faster or not any(reader.credits_out for reader in readers):
            family.reader = rollout.zone

    # --- from other zones ---

    def _elsewhere(self, swarm: Swarm) -> int:
        if swarm.everywhere:
            return swarm.full
        known = 0
        for sibling in swarm.siblings:
            known |= sibling.known()
        return known

    def next(self, now: float, swarm: Swarm) -> tuple[Seat, int, Node] | None:
        """Who of the zone reads which chunk next from which node of another zone."""
        rollout = swarm.rollout
        most = max(2, min(self._rules.zone_credits, self._rules.zone_bytes // swarm.chunk_size))
        if rollout.carrying >= most or now < rollout.cut_until:
            return None
        while there := swarm.missing & self._elsewhere(swarm) & ~swarm.stuck:
            index = lowest(there)
            source = self._source(swarm, index)
            if source is not None:
                seat = self._carrier(now, swarm, most, index)
                return (seat, index, source) if seat is not None else None
            swarm.stuck |= 1 << index
        return None

    def _carrier(self, now: float, swarm: Swarm, most: int, index: int) -> Seat | None:
        """A node that has little of this to do; whoever failed last at the chunk only if there is nobody else."""
        carriers = swarm.rollout.carriers
        limit = max(self._rules.leases_per_node, -(-2 * most // len(swarm.members))) if swarm.members else 0
        drawn = [node for node in swarm.members.sample(self._state.rng, _DRAWN) if now >= node.benched_until]
        seats = swarm.seats
        node = min(drawn, key=lambda node: (seats[node].avoided >> index & 1, carriers.get(node, 0)), default=None)
        return swarm.seats[node] if node is not None and carriers.get(node, 0) < limit else None

    def _source(self, swarm: Swarm, index: int) -> Node | None:
        shunned = swarm.shunned.get(index, set())
        if len(shunned) >= _TRIES:
            return None
        return next((node for node in self._having(swarm, index) if node not in shunned and node.live), None)

    def _having(self, swarm: Swarm, index: int) -> Iterator[Node]:
        """Nodes of other zones that have the chunk: whoever read it first, then any."""
        for sibling in swarm.siblings:
            node = sibling.source.get(index)
            if node is not None and node in sibling.seats and sibling.seats[node].known >> index & 1:
                yield node
        yield from swarm.everywhere.sample(self._state.rng, _TRIES + 1)
        for sibling in swarm.siblings:
            if sibling.tally.some() >> index & 1:
                yield from (node for node in sibling.members if sibling.seats[node].known >> index & 1)

    def booked(self, lease: Lease) -> None:
        """The zone has one more chunk on its way."""
        rollout = lease.seat.swarm.rollout
        rollout.carrying += 1
        rollout.carriers[lease.seat.node] = rollout.carriers.get(lease.seat.node, 0) + 1
        self._state.counters.carried += 1

    def ended(self, lease: Lease) -> None:
        """It has come, or comes no more."""
        carriers = lease.seat.swarm.rollout.carriers
        carriers[lease.seat.node] -= 1
        if not carriers[lease.seat.node]:
            del carriers[lease.seat.node]

    def failed(self, now: float, lease: Lease) -> bool:
        """The source doesn't give it: another one, or else the upstream. True: no other zone can be reached."""
        swarm = lease.seat.swarm
        if lease.source is not None:
            for index in indexes(lease.left):
                swarm.shunned.setdefault(index, set()).add(lease.source)
        failures, node = swarm.rollout.carry_failures, lease.seat.node
        failures[node] = failures.get(node, 0) + 1
        one_word = len(failures) < min(2, len(swarm.members))
        if sum(failures.values()) < _CUT or one_word or now < swarm.rollout.cut_until:
            return False
        swarm.rollout.cut_until = now + _CUT_FOR
        for other in swarm.rollout.swarms:
            other.shunned.clear()  # it was the way, not they
            other.stuck = 0
        return True


def refused(swarm: Swarm) -> bool:
    """Whether the upstream won't give the blob to the zone, and no other zone will."""
    return _denied(swarm) and not swarm.everywhere and all(_denied(sibling) for sibling in swarm.siblings)


def _denied(swarm: Swarm) -> bool:
    return len(swarm.votes) >= 2 or len(swarm.denied) >= len(swarm.members)
