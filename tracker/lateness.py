"""Which lease is sat on, and what becomes of the node: it gets fewer, for as long as it takes. Pure.

A lease is late beside the others of its rollout: they show progress, and it takes a multiple of what they take. Where
nobody shows progress the upstream is slow, and all have more time (docs/adr/0034). The one who was late goes on
reading: what it brings is welcome, and says how slow it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tracker.model import Lease, Node, Rollout, Seat, State
from tracker.timers import Outbox

OTHERS = 3  # nodes that must have shown progress since, in larger swarms
PASSED = 3  # times that a chunk is taken for sat on because others make progress
LAST = 4  # leases of a rollout that has nothing else left: whether others make progress says nothing then
SLOW = 1.5  # times what is usual: a node whose last read took longer reads none of the last chunks while others can
OWN = 1.5  # a node has so many times what its own last read took, up to `lease_timeout`
UNSEEN = 0.5  # of `lease_timeout`: what a node is taken to need of which nothing has come yet
AGE = 60.0  # seconds that what has not come counts for, at most, while others make progress
EVER = float("-inf")
DOUBLINGS = 3  # of the time on the bench
PAUSE = 4.0  # a node that was late and brought it after all pauses for so many times what that took
SHARE = 3.0  # of what a node is given on average: none is given more while others read ...
SLACK = 4  # ... and so many leases
LAPSED = 16  # chunks that are remembered for each seat


class Lateness:
    """Judges leases of chunks from upstream. `back(now, seat, out)` is called for each seat that takes leases again."""

    def __init__(self, state: State, back: Callable[[float, Seat, Outbox], None]) -> None:
        self._state = state
        self._rules = state.rules
        self._back = back

    # --- leases ---

    def next_look(self, now: float, lease: Lease) -> float:
        """When to look again, as others may have shown progress by then. `now`: it is late, and another's to read."""
        patience = self._patience(now, lease)
        if now - lease.touched >= patience:
            return now
        soon = self._rules.late_after
        return max(lease.touched + soon, min(now + soon / 2, lease.touched + patience))

    def _patience(self, now: float, lease: Lease) -> float:
        rules, swarm, node = self._rules, lease.seat.swarm, lease.seat.node
        reads, least = swarm.rollout.reads, UNSEEN * self._rules.lease_timeout
        if lease.passed < PASSED:
            enough = max(1, min(OTHERS, len(swarm.members) - 1))
            others = reads.others(lease.since, node) >= enough
            last = not lease.passed and reads.others(EVER, node) and self._among_the_last(swarm.rollout)
            if others or last:
                own = min(OWN * reads.took(node), rules.lease_timeout)
                return max(rules.late_after, rules.late_factor * reads.usual(now, least, AGE), own)
        return max(rules.lease_timeout, rules.lease_timeout_factor * reads.usual(now, least, least))

    def slow(self, now: float, rollout: Rollout, node: Node) -> bool:
        """Whether the node's last read took clearly longer than the others'."""
        took = rollout.reads.took(node)
        return took > 0 and took > SLOW * rollout.reads.usual(now, 0.0, AGE)

    def brisk(self, now: float, rollout: Rollout) -> bool:
        """Whether reads from this upstream usually take less than any lease is given."""
        least = UNSEEN * self._rules.lease_timeout
        return rollout.reads.usual(now, least, AGE) <= self._rules.late_after

    def _among_the_last(self, rollout: Rollout) -> bool:
        """Whether so little is being read, and nothing else is left, that nobody else can show progress for long.

        A second read of these is cheap, and what is usual is known by now.
        """
        return sum(rollout.load.values()) <= LAST and not any(swarm.missing for swarm in rollout.swarms)

    def began(self, now: float, lease: Lease) -> None:
        """A lease is given. What is known of its chunks from those who were to read them before goes with it."""
        swarm = lease.seat.swarm
        rollout, node = swarm.rollout, lease.seat.node
        rollout.reads.began(now, node, lease)
        rollout.given[node] = rollout.given.get(node, 0) + 1
        rollout.total += 1
        before = swarm.passed.get(lease.first)
        if before is not None:
            lease.since, lease.passed = before
        lease.deadline = now + self._rules.late_after

    def sat_on(self, now: float, lease: Lease, out: Outbox) -> None:
        """It is late: its holder is benched, and what it brings is heard."""
        seat = lease.seat
        seat.swarm.rollout.reads.given_up(now, seat.node, lease)
        for index in range(lease.first, lease.first + lease.count):
            if lease.left >> index & 1:
                seat.swarm.passed[index] = (lease.since, lease.passed + 1)
                seat.lapsed[index] = lease.granted
        while len(seat.lapsed) > LAPSED:
            del seat.lapsed[next(iter(seat.lapsed))]
        self.lapse(now, seat.node)

    # --- nodes ---

    def most(self, node: Node) -> int:
        """Leases that the node may have in a rollout: one, after it was late, until another came in time."""
        return 1 if node.lapses else self._rules.leases_per_node

    def has_its_share(self, rollout: Rollout, node: Node) -> bool:
        """Whether the node waits for others to read: it was given many times what they were.

        Who answers at once without having read anything would be given whatever the others have no hands for, and all
        of that is read again once it is caught.
        """
        mine = rollout.given.get(node, 0)
        if mine <= SLACK + SHARE * rollout.total / (len(rollout.given) or 1) or not rollout.load:
            return False
        readers = sum(other.live and not other.lapses for other in rollout.given)  # the others can't be waited for
        return mine > SLACK + SHARE * rollout.total / max(1, readers)

    def in_time(self, now: float, node: Node, out: Outbox) -> bool:
        """Half of what it reads has come. True: it may have more leases from now on."""
        before = self.most(node)
        node.lapses = max(0, node.lapses - 1)
        if node.benched_until and not node.lapses:
            self.unbench(now, node, out)
        return self.most(node) > before

    def came_late(self, now: float, seat: Seat, index: int) -> None:
        """There is progress with a chunk that was given to another node meanwhile: it is slow, no more."""
        began = seat.lapsed.pop(index, None)
        if began is None:
            return
        took = now - began
        seat.swarm.rollout.reads.came(now, seat.node, None, took)
        if seat.node.benched_until > now:
            self._until(min(seat.node.benched_until, now + PAUSE * took), seat.node)

    def lapse(self, now: float, node: Node) -> None:
        """It didn't do what it was to do."""
        seconds = self._rules.bench_time * 2.0 ** min(node.lapses, DOUBLINGS)
        node.lapses += 1
        self.bench(now, node, seconds)

    def bench(self, now: float, node: Node, seconds: float) -> None:
        """No leases for the node for so long, at least."""
        self._until(max(node.benched_until, now + seconds), node)

    def _until(self, when: float, node: Node) -> None:
        node.benched_until = when
        self._state.timers.at(when, partial(self._due, node))

    def _due(self, node: Node, now: float, out: Outbox) -> None:
        if node.benched_until and now >= node.benched_until:
            self.unbench(now, node, out)

    def unbench(self, now: float, node: Node, out: Outbox) -> None:
        """The node takes leases again."""
        node.benched_until = 0.0
        seats, node.benched = node.benched, []
        for seat in seats:
            if not seat.swarm.over:
                self._back(now, seat, out)
