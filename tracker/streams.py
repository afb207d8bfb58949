"""The lone node: a swarm of one node and no holder is read as one stream, at the speed of a direct pull. Pure.

When somebody else turns up the stream is recalled, and what it hasn't read is leased in chunks. A swarm that others
left goes back to a stream. Streams hold no credits: they send no Half, and a direct pull would hold none either.
"""

from __future__ import annotations

import heapq
from functools import partial
from itertools import count

from p2pdist.protocol import messages
from tracker.bitmaps import lowest
from tracker.leases import Leases
from tracker.model import Node, Seat, State, Stream, Swarm
from tracker.timers import Outbox


class Streams:
    """Gives the lone node its stream and takes it back."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rules = state.rules
        self._numbers = count()
        self.leases = Leases(state, self.reconsider)

    def reconsider(self, now: float, swarm: Swarm, out: Outbox) -> None:
        """Members, holders or leases of a swarm have changed: should it be a stream, or a stream no more?"""
        if swarm.over or swarm.closing:
            return
        if not swarm.lone:
            if swarm.alone is not None and not swarm.alone.recalled:
                self._recall(now, swarm, out)
            return
        node = swarm.members.only()
        if swarm.alone is None and swarm.lone_queue is not node:
            swarm.lone_queue = node
            heapq.heappush(node.lone, (swarm.rollout.number, swarm.order, next(self._numbers), swarm))
        self.serve(now, node, out)

    def serve(self, now: float, node: Node, out: Outbox) -> None:
        """Start what the node may stream now, earlier blobs first."""
        while node.live and node.lone and len(node.alone) < self._rules.alone_leases:
            swarm = node.lone[0][3]
            waiting = swarm.lone and node in swarm.members and swarm.alone is None
            if swarm.over or not waiting or not swarm.full & ~swarm.tally.some():
                self._unqueue(node)
                continue
            ready = max(
                swarm.born + self._rules.alone_after,
                swarm.hold_until,
                swarm.rollout.hold_until,
                swarm.rollout.registry.paused_until,
            )
            if now < ready:
                if not now < node.lone_due <= ready:
                    node.lone_due = ready
                    self._state.timers.at(ready, partial(self._due, node))
                return
            if swarm.leases:  # its end comes back to `reconsider`
                return
            self._unqueue(node)
            self._start(node, swarm, out)

    def _unqueue(self, node: Node) -> None:
        swarm = heapq.heappop(node.lone)[3]
        if swarm.lone_queue is node:
            swarm.lone_queue = None

    def _due(self, node: Node, now: float, out: Outbox) -> None:
        self.serve(now, node, out)

    def _start(self, node: Node, swarm: Swarm, out: Outbox) -> None:
        swarm.missing = swarm.full & ~swarm.tally.some()  # nobody else can have any
        swarm.rollout.cursor = 0
        swarm.alone = Stream(node)
        node.alone.add(swarm)
        self._state.counters.streams += 1
        first = lowest(swarm.missing)
        out.append((node.id, messages.Lease(swarm.digest, first, swarm.count - first, alone=True)))

    def adopt(self, seat: Seat, out: Outbox) -> None:
        """The node says that it streams the blob already: so be it while it is alone, else it is to stop."""
        swarm, node = seat.swarm, seat.node
        if swarm.alone is None and swarm.lone and not swarm.leases and len(node.alone) < self._rules.alone_leases:
            swarm.missing = swarm.full & ~swarm.tally.some()
            swarm.alone = Stream(node)
            node.alone.add(swarm)
        elif swarm.alone is None or swarm.alone.node is not node:
            out.append((node.id, messages.Recall(swarm.digest)))

    def _recall(self, now: float, swarm: Swarm, out: Outbox) -> None:
        stream = swarm.alone
        if stream is None:
            return
        stream.recalled = True
        out.append((stream.node.id, messages.Recall(swarm.digest)))
        self._state.timers.at(now + self._rules.recall_timeout, partial(self._unanswered, swarm, stream))

    def _unanswered(self, swarm: Swarm, stream: Stream, now: float, out: Outbox) -> None:
        if swarm.alone is stream:
            self.end(now, swarm, out)

    def end(self, now: float, swarm: Swarm, out: Outbox) -> None:
        """The stream is over, for whatever reason: what nobody has is leased, or streamed again."""
        stream = swarm.alone
        if stream is None:
            return
        swarm.alone = None
        stream.node.alone.discard(swarm)
        swarm.missing = swarm.full & ~swarm.known() & ~swarm.leased
        swarm.rollout.cursor = 0
        self.reconsider(now, swarm, out)
        self.serve(now, stream.node, out)
        self.leases.want(now, swarm.rollout, out)
