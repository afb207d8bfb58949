"""Who wants which blob, who has it, and who reads what from upstream: the tracker's decisions. Pure and synchronous.

Every method takes the time first and returns the messages to send. Time is in seconds and never goes back; randomness
comes from the given `random.Random`. Call `tick` at or after `next_deadline`. Messages from nodes that aren't
connected, or about what they have no part in, change nothing: agents and trackers lose sight of each other all the
time, and everything is said again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType

from msgspec import structs

from p2pdist.protocol import labels as names
from p2pdist.protocol import messages
from p2pdist.protocol.messages import PeerInfo
from tracker import gateways, neighbours, zones
from tracker.bitmaps import from_wire
from tracker.model import Counters, Node, Seat, State, Swarm
from tracker.rescue import Rescue
from tracker.rules import SwarmRules
from tracker.seats import Seats
from tracker.timers import Outbox

REFUSALS = frozenset({401, 403, 404, 410, 451})  # an upstream that says so would say so to others


class Swarms:
    """All swarms of one cluster, in memory."""

    def __init__(self, rules: SwarmRules, rng: random.Random, now: float) -> None:
        self._state = State(rules, rng, now)
        self._seats = Seats(self._state)
        self._streams = self._seats.streams
        self._leases = self._seats.leases
        self._rescue = Rescue(self._state, self._seats)

    @property
    def state(self) -> State:
        """For status and metrics; not to be changed."""
        return self._state

    @property
    def counters(self) -> Counters:
        """What has happened since the start."""
        return self._state.counters

    def tick(self, now: float) -> Outbox:
        """Do what is due."""
        out: Outbox = []
        self._state.timers.run(now, out)
        return out

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next; None: never, as things are."""
        return self._state.timers.next()

    # --- sessions ---

    def connected(
        self, now: float, peer: PeerInfo, address: str = "", labels: Mapping[str, str] = MappingProxyType({})
    ) -> Outbox:
        """A node's session begins; `address` is where it comes from. An older session of the node ends."""
        out = self.disconnected(now, peer.node)
        zone = labels.get(names.ZONE, "") if labels.get(names.CROSSING) == names.LEASES else ""
        node = Node(structs.replace(peer, zone=zone) if zone else peer, address, *gateways.place(labels), zone)
        self._state.nodes[peer.node] = node
        if node.gateway:
            self._state.sites.setdefault(node.site, {})[node] = None
        return out

    def disconnected(self, now: float, node_id: bytes) -> Outbox:
        """A node's session is over: it takes part in nothing any more."""
        out: Outbox = []
        node = self._state.nodes.pop(node_id, None)
        if node is not None:
            node.live = False
            gateways.gone(self._state, node)
            for seat in list(node.seats.values()):
                self._seats.stand_up(now, seat, out)
            for digest in list(node.holds):
                self._seats.unserve(now, node, digest, out)
        return out

    def dead(self, now: float, node_id: bytes, message: messages.Dead) -> Outbox:
        """A node says that another is dead."""
        out: Outbox = []
        node, peer = self._state.nodes.get(node_id), self._state.nodes.get(message.peer)
        if node is not None and peer is not None:
            self._rescue.vote(now, node, peer, out)
        return out

    def _active(self, now: float, node_id: bytes, out: Outbox) -> Node | None:
        """The node behind a message that shows progress: it is alive, whatever was said about it."""
        node = self._state.nodes.get(node_id)
        if node is not None and not node.live:
            self._rescue.revive(now, node, out)
        return node

    def _seat(self, node: Node | None, digest: str) -> Seat | None:
        return node.seats.get(digest) if node is not None else None

    # --- who takes part ---

    def join(self, now: float, node_id: bytes, message: messages.Join) -> Outbox:
        """A node wants blobs. What is over a limit is left out of the answer."""
        out: Outbox = []
        node = self._active(now, node_id, out)
        if node is None:
            return out
        total = sum(want.size for want in message.wants)
        swarms: dict[Swarm, None] = {}
        for want in message.wants:
            seat = self._seats.take(now, node, message, want, total, out)
            if seat is not None:
                swarms[seat.swarm] = None
        self._answer(now, node, message, list(swarms), out)
        for swarm in swarms:
            self._streams.reconsider(now, swarm, out)
        for rollout in {swarm.rollout: None for swarm in swarms}:
            self._leases.want(now, rollout, out)
        return out

    def _answer(self, now: float, node: Node, message: messages.Join, swarms: list[Swarm], out: Outbox) -> None:
        peers = neighbours.pick(self._state, node, swarms, neighbours.first_degree(self._state, swarms))
        states = [
            messages.Swarm(swarm.digest, swarm.chunk_size, len(swarm.members), len(swarm.holders)) for swarm in swarms
        ]
        out.append((node.id, messages.Joined(message.rollout, states, peers)))
        registry = self._state.registries.get(message.registry)
        if registry is not None and registry.paused_until > now:
            out.append((node.id, messages.Throttle(registry.name, registry.paused_until - now)))

    def more(self, now: float, node_id: bytes, message: messages.More) -> Outbox:
        """A node wants more neighbours for a blob."""
        node = self._state.nodes.get(node_id)
        seat = self._seat(node, message.digest)
        if node is None or seat is None:
            return []
        peers = [info for _, info in gateways.across(seat.swarm, node)]
        peers += neighbours.pick(self._state, node, [seat.swarm], message.count)
        return [(node.id, messages.Neighbours(peers))]

    def leave(self, now: float, node_id: bytes, message: messages.Leave) -> Outbox:
        """A node no longer wants a blob."""
        out: Outbox = []
        seat = self._seat(self._state.nodes.get(node_id), message.digest)
        if seat is not None:
            self._seats.stand_up(now, seat, out)
        return out

    def done(self, now: float, node_id: bytes, message: messages.Done) -> Outbox:
        """A node has proved the whole blob and serves it."""
        seat = self._seat(self._state.nodes.get(node_id), message.digest)
        if seat is not None and seat.swarm.alone is not None and seat.swarm.alone.node is seat.node:
            self.counters.bytes_read += seat.swarm.missing.bit_count() * seat.swarm.chunk_size
        return self.holds(now, node_id, messages.Holds([message.digest]))

    def holds(self, now: float, node_id: bytes, message: messages.Holds) -> Outbox:
        """A node has these blobs whole and serves them."""
        out: Outbox = []
        node = self._active(now, node_id, out)
        if node is not None:
            for digest in message.digests:
                self._seats.hold(now, node, digest, out)
        return out

    def drops(self, now: float, node_id: bytes, message: messages.Drops) -> Outbox:
        """A node has these blobs no more."""
        out: Outbox = []
        node = self._state.nodes.get(node_id)
        if node is not None:
            for digest in message.digests:
                if digest in node.holds:
                    self._seats.unhold(now, node, digest, out)
        return out

    # --- what comes from upstream ---

    def half(self, now: float, node_id: bytes, message: messages.Half) -> Outbox:
        """Half of a leased chunk has arrived."""
        out: Outbox = []
        node = self._active(now, node_id, out)
        seat = self._seat(node, message.digest)
        lease = self._leases.find(node, message.digest, message.index) if node else None
        if lease is not None:
            self._leases.progress(now, lease, 2 * (message.index - lease.first) + 1, out)
        elif seat is not None:
            self._leases.lateness.came_late(now, seat, message.index)
        return out

    def got(self, now: float, node_id: bytes, message: messages.Got) -> Outbox:
        """A chunk read from upstream is proved. Welcome late, and from whoever."""
        out: Outbox = []
        node = self._active(now, node_id, out)
        seat = self._seat(node, message.digest)
        if node is None or seat is None or message.index >= seat.swarm.count:
            return out
        swarm = seat.swarm
        self._seats.learn(seat, 1 << message.index)
        swarm.source[message.index] = node
        swarm.since[message.index] = now
        swarm.missed.pop(message.index, None)
        swarm.failures.pop(message.index, None)
        swarm.passed.pop(message.index, None)
        swarm.votes.clear()
        lease = self._leases.find(node, message.digest, message.index)
        if lease is not None:
            if lease.source is None:
                self.counters.bytes_read += swarm.chunk_size
            else:
                self.counters.bytes_carried += swarm.chunk_size
            self._leases.arrived(now, lease, message.index, out)
        else:
            self._leases.lateness.came_late(now, seat, message.index)
        self._leases.spread(now, swarm, out)
        return out

    def returned(self, now: float, node_id: bytes, message: messages.Returned) -> Outbox:
        """The lone stream has stopped; `have` is what the node has now."""
        out: Outbox = []
        seat = self._seat(self._active(now, node_id, out), message.digest)
        if seat is not None:
            swarm = seat.swarm
            new = self._seats.learn(seat, from_wire(message.have, swarm.count))
            self.counters.bytes_read += new.bit_count() * swarm.chunk_size
            if swarm.alone is not None and swarm.alone.node is seat.node:
                self._streams.end(now, swarm, out)
        return out

    def failed(self, now: float, node_id: bytes, message: messages.Failed) -> Outbox:
        """The upstream didn't give a leased chunk."""
        out: Outbox = []
        node = self._state.nodes.get(node_id)
        seat = self._seat(node, message.digest)
        if node is None or seat is None:
            return out
        swarm = seat.swarm
        lease = self._leases.find(node, message.digest, message.index)
        if lease is None and (swarm.alone is None or swarm.alone.node is not node):
            return out
        self.counters.failed += 1
        if lease is not None and lease.source is not None:
            self._leases.not_given(now, lease, out)
            return out
        if message.retry_after > 0 or message.status == 429:
            self._leases.throttle(now, swarm.rollout.registry, message.retry_after or 1.0, out)
        refused = message.final and message.status in REFUSALS
        if message.final:
            seat.denied = True
            swarm.denied.add(node)
            if refused:
                swarm.votes[node] = message.status
            if zones.refused(swarm):
                self._gone(now, swarm, message.status, out)
                return out
        delay = 0.0 if refused else self._leases.failed(now, seat, min(message.index, swarm.count - 1), out)
        if lease is not None:
            self._leases.take_back(now, lease, out, delay=delay, avoid=True)
        else:
            self._streams.end(now, swarm, out)
        return out

    def throttled(self, now: float, registry: str, seconds: float) -> Outbox:
        """An upstream asked for a pause when it was asked for something else than a chunk."""
        out: Outbox = []
        found = self._state.registries.get(registry)
        if found is not None:
            self._leases.throttle(now, found, seconds, out)
        return out

    def _gone(self, now: float, swarm: Swarm, status: int, out: Outbox) -> None:
        """Tell everyone in the swarm who would read it from the same upstream, and let them go."""
        self.counters.gone += 1
        registry = swarm.rollout.registry.name
        leaving = [seat for seat in swarm.seats.values() if seat.registry == registry]
        out.extend((seat.node.id, messages.Gone(swarm.digest, status)) for seat in leaving)
        swarm.closing = True
        for seat in leaving:
            self._seats.stand_up(now, seat, out)
        swarm.closing = False
        if not swarm.over:
            self._streams.reconsider(now, swarm, out)
            self._leases.want(now, swarm.rollout, out)
        for sibling in tuple(swarm.siblings):
            if not sibling.over and zones.refused(sibling):
                self._gone(now, sibling, status, out)

    def miss(self, now: float, node_id: bytes, message: messages.Miss) -> Outbox:
        """A node and its neighbours lack these chunks, and nothing comes."""
        out: Outbox = []
        node = self._state.nodes.get(node_id)
        seat = self._seat(node, message.digest)
        if node is not None and seat is not None and node.live:
            self._rescue.miss(now, seat, message.indexes, out)
        return out
