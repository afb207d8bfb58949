"""Leases of chunks: who reads what from upstream next, and what comes back. Pure.

Where nodes are in zones, `tracker.zones` says which chunks a zone may read from upstream, and from where else it gets
the others. Rules (swarm design page, "Leases"): each missing chunk is read by one node; nodes take turns; at most
`leases_per_node` each; the credit comes back when half of the lease has arrived; credits are bounded per rollout
(growing) and per upstream registry; earlier blobs of a rollout first. Nothing here looks at all nodes or all chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

from p2pdist.protocol import messages
from tracker.bitmaps import indexes, lowest, run_length, span
from tracker.lateness import Lateness
from tracker.model import Lease, Node, Registry, Rollout, Seat, State, Swarm
from tracker.timers import Outbox
from tracker.zones import Zones

PACE_WEIGHT = 0.1  # of the newest measurement in the average
LAST_CHUNKS = 32  # of a blob: everybody waits for them, and slow nodes read them last (docs/adr/0016)
LONGEST_BACK_OFF = 8.0  # seconds
MOST_STEPS = 4  # times that more nodes are asked while nothing comes: of a slow upstream in all


class Leases:
    """Grants leases and takes them back. `idle(now, swarm, out)` is called when a swarm's last lease has ended."""

    def __init__(self, state: State, idle: Callable[[float, Swarm, Outbox], None]) -> None:
        self._state = state
        self._rules = state.rules
        self._idle = idle
        self._zones = Zones(state)
        self.lateness = Lateness(state, self._back)

    # --- granting ---

    def enlist(self, seat: Seat, *, new: bool = False) -> None:
        """Put a seat into its swarm's ring.

        A `new` one anywhere: those that came first must not be the first to read all blobs of an image, and who means
        harm may well be waiting for a rollout.
        """
        if not seat.queued and not seat.denied:
            seat.queued = True
            ring = seat.swarm.ring if seat.node.reads else seat.swarm.far_ring
            ring.insert(self._state.rng.randrange(len(ring) + 1) if new else len(ring), seat)

    def release(self, swarm: Swarm, chunks: int) -> None:
        """These chunks are to be leased again, unless they have turned up meanwhile."""
        chunks &= ~swarm.known() & ~swarm.leased
        if chunks:
            swarm.missing |= chunks
            swarm.rollout.cursor = 0

    def want(self, now: float, rollout: Rollout, out: Outbox) -> None:
        """Something has changed: let the rollout, and those that wait for the same registry, have leases in turn."""
        registry = rollout.registry
        registry.queue[rollout] = None
        for other in rollout.family.rollouts if len(rollout.family.rollouts) > 1 or rollout.zone else ():
            registry.queue[other] = None
            self._carry(now, other, out)
        self._serve(now, registry, out)

    def spread(self, now: float, swarm: Swarm, out: Outbox) -> None:
        """What is known in one zone has changed: others may get it from there, or must look elsewhere."""
        for sibling in tuple(swarm.siblings):
            self.want(now, sibling.rollout, out)

    def _carry(self, now: float, rollout: Rollout, out: Outbox) -> None:
        for swarm in islice(rollout.swarms, rollout.cursor, None):
            while swarm.missing and swarm.apart and swarm.alone is None and not swarm.closing:
                found = self._zones.next(now, swarm) if now >= swarm.hold_until else None
                if found is None:
                    break
                seat, index, source = found
                self._book(now, seat, index, 1, source)
                out.append((seat.node.id, messages.Lease(swarm.digest, index, 1, source=source.peer)))

    def _serve(self, now: float, registry: Registry, out: Outbox) -> None:
        if now < registry.paused_until:
            return
        while registry.queue and registry.credits_out < self._rules.registry_credits:
            rollout, _ = registry.queue.popitem(last=False)
            if rollout.credits_out < rollout.window and self._grant(now, rollout, out):
                registry.queue[rollout] = None

    def _grant(self, now: float, rollout: Rollout, out: Outbox) -> bool:
        if now < rollout.hold_until:
            return False
        swarms = rollout.swarms
        while rollout.cursor < len(swarms) and not swarms[rollout.cursor].missing:
            rollout.cursor += 1
        for swarm in islice(swarms, rollout.cursor, None):
            if swarm.missing and self._leasable(now, swarm):
                wanted = self._zones.readable(now, swarm) if swarm.apart else swarm.missing
                seat = self._next_seat(now, swarm, wanted) if wanted else None
                if seat is not None:
                    self._lease(now, seat, wanted, out)
                    return True
        return False

    def _leasable(self, now: float, swarm: Swarm) -> bool:
        if swarm.alone is not None or swarm.closing or now < swarm.hold_until:
            return False
        return not swarm.lone or now < swarm.born + self._rules.alone_after

    def _next_seat(self, now: float, swarm: Swarm, wanted: int) -> Seat | None:
        """The next node in turn; those that can't take a lease now leave the ring until they can."""
        ring, readers = swarm.turns()
        load, parked = swarm.rollout.load, swarm.rollout.parked
        last = wanted.bit_count() <= LAST_CHUNKS
        slow: Seat | None = None
        for _ in range(len(ring)):
            seat = ring.popleft()
            node = seat.node
            if swarm.seats.get(node) is not seat or not node.live or seat.denied:
                seat.queued = False
            elif load.get(node, 0) >= self.lateness.most(node):
                seat.queued = False
                parked.setdefault(node, []).append(seat)
            elif now < node.benched_until:
                seat.queued = False
                node.benched.append(seat)
            else:
                ring.append(seat)
                if self.lateness.has_its_share(swarm.rollout, node):
                    continue
                # at most one seat avoids all that is missing: a chunk is avoided by one seat
                if wanted & ~seat.avoided or readers <= 1:
                    if not last or not self.lateness.slow(now, swarm.rollout, node):
                        return seat
                    slow = slow or seat
        return slow

    def _lease(self, now: float, seat: Seat, missing: int, out: Outbox) -> None:
        swarm, node = seat.swarm, seat.node
        wanted = missing & ~seat.avoided or missing
        first = lowest(wanted)
        count = run_length(wanted, first, self._rules.run)
        self._book(now, seat, first, count)
        out.append((node.id, messages.Lease(swarm.digest, first, count)))

    def adopt(self, now: float, seat: Seat, index: int) -> None:
        """The node says that it reads this chunk: another tracker leased it, or this one before it restarted."""
        swarm = seat.swarm
        rollout = swarm.rollout
        room = (
            rollout.load.get(seat.node, 0) < self._rules.leases_per_node
            and rollout.credits_out < self._rules.credits
            and rollout.registry.credits_out < self._rules.registry_credits
        )
        if room and swarm.missing >> index & 1 and swarm.alone is None:
            self._book(now, seat, index, 1)

    def _book(self, now: float, seat: Seat, first: int, count: int, source: Node | None = None) -> None:
        swarm, node = seat.swarm, seat.node
        rollout = swarm.rollout
        chunks = span(first, count)
        lease = Lease(seat, first, count, chunks, now, now + self._carry_timeout(rollout))
        swarm.missing &= ~chunks
        swarm.leased |= chunks
        for index in range(first, first + count):
            swarm.leases[index] = lease
        seat.leases.append(lease)
        if source is not None:
            lease.source = source
            self._zones.booked(lease)
        else:
            if not rollout.load:
                rollout.moved = now
            if not rollout.watched:
                rollout.watched = True
                self._state.timers.at(now + self._rules.late_after, partial(self._look_at, rollout))
            rollout.load[node] = rollout.load.get(node, 0) + 1
            rollout.credits_out += 1
            rollout.registry.credits_out += 1
            self._state.counters.granted += 1
            self.lateness.began(now, lease)
        self._state.timers.at(lease.deadline, partial(self._expire, lease))

    def _carry_timeout(self, rollout: Rollout) -> float:
        return max(self._rules.carry_timeout, self._rules.lease_timeout_factor * rollout.carry_pace)

    # --- what comes back ---

    def find(self, node: Node, digest: str, index: int) -> Lease | None:
        """The node's own lease of this chunk."""
        seat = node.seats.get(digest)
        lease = seat.swarm.leases.get(index) if seat else None
        return lease if lease is not None and lease.seat is seat else None

    def progress(self, now: float, lease: Lease, halves: int, out: Outbox) -> None:
        """`halves` half chunks of the lease have arrived."""
        rollout = lease.seat.swarm.rollout
        registry, node = rollout.registry, lease.seat.node
        half = lease.progress < lease.count <= halves
        lease.progress = max(lease.progress, halves)
        lease.touched = lease.since = now
        if lease.source is None:
            rollout.failures = node.strikes = 0
            rollout.moved = now
            rollout.reads.came(now, node, lease)
        else:
            late = now + self._carry_timeout(rollout)
            lease.deadline = max(lease.deadline, late)  # its timer is set for the earlier one
        if half:
            took = now - lease.granted
            if lease.source is not None:
                rollout.carry_failures.clear()
                rollout.carry_pace += (took - rollout.carry_pace) * (PACE_WEIGHT if rollout.carry_pace else 1.0)
            else:
                self._zones.read(lease, took)
                registry.pace += (took - registry.pace) * (PACE_WEIGHT if registry.pace else 1.0)
                rollout.window = min(self._rules.credits, rollout.window + 1)
                rollout.reads.came(now, node, lease, took)
                if rollout.steps and self.lateness.brisk(now, rollout):
                    rollout.steps = 0
                if self.lateness.in_time(now, node, out):
                    self._unpark(rollout, node)
            self._credit(lease)
            self.want(now, rollout, out)

    def _look_at(self, rollout: Rollout, now: float, out: Outbox) -> None:
        """If nothing comes of what the rollout reads, more nodes are asked, each for a chunk of its own.

        It may be the upstream that is slow, then no chunk is read twice; or those who were asked mean harm.
        """
        rollout.watched = bool(rollout.load)
        if not rollout.watched:
            return
        soon = self._rules.late_after
        if now >= rollout.moved + soon and rollout.steps < MOST_STEPS:
            rollout.steps += 1
            rollout.window = min(self._rules.credits, 2 * rollout.window)
            for swarm in rollout.swarms:
                for lease in swarm.leases.values():
                    if lease.source is None:
                        self._credit(lease)
            self.want(now, rollout, out)
        next_look = rollout.moved + soon
        self._state.timers.at(next_look if next_look > now else now + soon, partial(self._look_at, rollout))

    def _credit(self, lease: Lease) -> None:
        if not lease.credit:
            return
        lease.credit = False
        rollout = lease.seat.swarm.rollout
        if lease.source is not None:
            rollout.carrying -= 1
            return
        rollout.credits_out -= 1
        rollout.registry.credits_out -= 1

    def arrived(self, now: float, lease: Lease, index: int, out: Outbox) -> None:
        """Chunk `index` of the lease is there."""
        self._forget(lease, index)
        self.progress(now, lease, 2 * (index - lease.first) + 2, out)
        if not lease.left:
            self._end(now, lease, out)
            self.want(now, lease.seat.swarm.rollout, out)

    def take_back(self, now: float, lease: Lease, out: Outbox, *, delay: float = 0.0, avoid: bool = False) -> None:
        """End a lease: what hasn't come is leased again after `delay` seconds, first to others if `avoid`."""
        swarm, left = lease.seat.swarm, lease.left
        if not left:
            return
        for index in indexes(left):
            self._forget(lease, index)
            if avoid:
                self._avoid(lease.seat, index)
        self._state.counters.regranted += left.bit_count()
        if delay > 0:
            self._state.timers.at(now + delay, partial(self._again, swarm, left))
        else:
            self.release(swarm, left)
        self._end(now, lease, out)
        self.want(now, swarm.rollout, out)

    def not_given(self, now: float, lease: Lease, out: Outbox) -> None:
        """The node of another zone that was to give the chunk doesn't: it is had from elsewhere."""
        if self._zones.failed(now, lease):
            rollout = lease.seat.swarm.rollout
            self._state.timers.at(rollout.cut_until, partial(self._held, rollout))
        self.take_back(now, lease, out, delay=self._rules.retry_after_failure, avoid=True)

    def _forget(self, lease: Lease, index: int) -> None:
        swarm = lease.seat.swarm
        lease.left &= ~(1 << index)
        swarm.leased &= ~(1 << index)
        del swarm.leases[index]

    def _end(self, now: float, lease: Lease, out: Outbox) -> None:
        self._credit(lease)
        seat = lease.seat
        seat.leases.remove(lease)
        rollout, node = seat.swarm.rollout, seat.node
        if lease.source is not None:
            self._zones.ended(lease)
            if not seat.swarm.leases:
                self._idle(now, seat.swarm, out)
            return
        rollout.reads.ended(node, lease)
        load = rollout.load[node] - 1
        if load:
            rollout.load[node] = load
        else:
            del rollout.load[node]
        self._unpark(rollout, node)
        if not seat.swarm.leases:
            self._idle(now, seat.swarm, out)

    def _unpark(self, rollout: Rollout, node: Node) -> None:
        for parked in rollout.parked.pop(node, ()):
            self.enlist(parked)

    def _avoid(self, seat: Seat, index: int) -> None:
        swarm = seat.swarm
        before = swarm.avoid.get(index)
        if before is not None:
            before.avoided &= ~(1 << index)
        seat.avoided |= 1 << index
        swarm.avoid[index] = seat

    def _again(self, swarm: Swarm, chunks: int, now: float, out: Outbox) -> None:
        if not swarm.over:
            self.release(swarm, chunks)
            self.want(now, swarm.rollout, out)

    def _expire(self, lease: Lease, now: float, out: Outbox) -> None:
        if not lease.left:
            return
        if lease.source is None:
            lease.deadline = self.lateness.next_look(now, lease)
        if now < lease.deadline:
            self._state.timers.at(lease.deadline, partial(self._expire, lease))
            return
        self._state.counters.expired += 1
        self.overdue(now, lease, out)

    def overdue(self, now: float, lease: Lease, out: Outbox) -> None:
        """The holder shows no progress: another node takes over, and the holder gets no lease for a while."""
        if lease.source is None:
            self.lateness.sat_on(now, lease, out)
        else:
            self.lateness.bench(now, lease.seat.node, self._rules.bench_time)
        self.take_back(now, lease, out, avoid=True)

    def _back(self, now: float, seat: Seat, out: Outbox) -> None:
        self.enlist(seat)
        self.want(now, seat.swarm.rollout, out)

    def failed(self, now: float, seat: Seat, index: int, out: Outbox) -> float:
        """A read failed. Whoever fails again and again waits longer and longer: the chunk, the node, the rollout.

        Returns the seconds until the chunk is leased again.
        """
        swarm, node = seat.swarm, seat.node
        rollout = swarm.rollout
        swarm.failures[index] = swarm.failures.get(index, 0) + 1
        node.strikes += 1
        if node.strikes > 1:
            self.lateness.bench(now, node, min(self._rules.bench_time, self._back_off(node.strikes)))
        rollout.failures += 1
        if rollout.failures > 1:  # after the first one another node tries at once
            rollout.window = self._rules.first_credits
            rollout.hold_until = now + self._back_off(rollout.failures - 1)
            self._state.timers.at(rollout.hold_until, partial(self._held, rollout))
        return self._back_off(swarm.failures[index])

    def _back_off(self, failures: int) -> float:
        return min(LONGEST_BACK_OFF, self._rules.retry_after_failure * 2.0 ** min(failures - 1, 10))

    def _held(self, rollout: Rollout, now: float, out: Outbox) -> None:
        if rollout.swarms:
            self.want(now, rollout, out)

    # --- the upstream asks for a pause ---

    def throttle(self, now: float, registry: Registry, seconds: float, out: Outbox) -> None:
        """No leases for the registry for a while; everyone who waits for something from it is told."""
        seconds = min(seconds, self._rules.throttle_most)
        until = now + seconds
        for rollout in registry.rollouts:
            rollout.window = self._rules.first_credits
        if until <= registry.paused_until + 0.5:  # known already
            return
        registry.paused_until = until
        self._state.timers.at(until, partial(self._resume, registry))
        nodes = {node: None for rollout in registry.rollouts for swarm in rollout.swarms for node in swarm.seats}
        out.extend((node.id, messages.Throttle(registry.name, seconds)) for node in nodes)

    def _resume(self, registry: Registry, now: float, out: Outbox) -> None:
        if now < registry.paused_until:
            return
        for rollout in registry.rollouts:
            registry.queue[rollout] = None
        self._serve(now, registry, out)
        self.forget_registry(now, registry)

    def forget_registry(self, now: float, registry: Registry) -> None:
        """Drop a registry that nobody reads from."""
        if not registry.rollouts and now >= registry.paused_until:
            self._state.registries.pop(registry.name, None)
