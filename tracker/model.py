"""What the tracker knows about nodes, blobs and who reads what from upstream. Pure data; the rules are elsewhere.

A blob's swarm is named by digest *and size*: a node that lies about a size stands in a swarm of its own. Sets of
chunks are ints (`tracker.bitmaps`). Nodes, seats, leases, swarms and rollouts are compared by identity.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque

from p2pdist.protocol.chunks import chunk_count
from p2pdist.protocol.messages import PeerInfo
from tracker.bitmaps import Tally
from tracker.reads import Reads
from tracker.roster import Roster
from tracker.rules import SwarmRules
from tracker.timers import Timers


class Node:
    """A connected agent. `live`: not voted dead; only live nodes are neighbours and hold leases."""

    __slots__ = (
        "address", "alone", "benched", "benched_until", "gateway", "holds", "id", "lapses", "live", "lone", "lone_due",
        "peer", "reads", "seats", "site", "strikes", "votes", "zone",
    )  # fmt: skip

    def __init__(
        self, peer: PeerInfo, address: str, site: str = "", gateway: int = 0, reads: bool = True, zone: str = ""
    ) -> None:
        self.id = peer.node
        self.peer = peer
        self.address = address  # where its session comes from
        self.site = site
        self.gateway = gateway  # the port on which other sites reach it; 0: it is no gateway
        self.reads = reads  # False: only when nobody else in a swarm may read from upstream
        self.zone = zone  # chunks come into it under leases only; empty: it is in none
        self.live = True
        self.seats: dict[str, Seat] = {}  # by digest: the blobs it waits for
        self.holds: set[str] = set()
        self.votes: dict[Node, float] = {}  # who called it dead, and when
        self.strikes = 0  # reads that failed since one made progress
        self.lapses = 0  # leases that it let expire; each that comes in time makes up for one
        self.benched_until = 0.0
        self.benched: list[Seat] = []
        self.lone: list[tuple[int, int, int, Swarm]] = []  # heap by rollout and order: swarms it may read as a stream
        self.lone_due = 0.0  # when they are looked at next
        self.alone: set[Swarm] = set()  # swarms it reads as a stream


class Lease:
    """Chunks `first` .. `first + count - 1` are being read from upstream, or from `source`, by `seat.node`."""

    __slots__ = (
        "count", "credit", "deadline", "first", "granted", "left", "passed", "progress", "seat", "since", "source",
        "touched",
    )  # fmt: skip

    def __init__(self, seat: Seat, first: int, count: int, left: int, now: float, deadline: float) -> None:
        self.seat = seat
        self.first = first
        self.count = count
        self.left = left  # chunks that haven't come; 0: the lease is over
        self.credit = True  # whether it still holds a credit
        self.source: Node | None = None  # a node of another zone from which it is read; then the credit is the zone's
        self.progress = 0  # half chunks read
        self.granted = now
        self.touched = now  # its last sign of progress
        self.since = now  # the same of the first one who was to read it, and let it expire beside others
        self.passed = 0  # how many let it expire like that
        self.deadline = deadline  # when it is looked at again


class Seat:
    """A node's place in a swarm: it waits for the blob."""

    __slots__ = ("avoided", "denied", "known", "lapsed", "leases", "node", "queued", "registry", "swarm")

    def __init__(self, node: Node, swarm: Swarm, registry: str) -> None:
        self.node = node
        self.swarm = swarm
        self.registry = registry  # where this node would read it
        self.known = 0  # chunks it has said it has
        self.leases: list[Lease] = []
        self.queued = False  # whether it stands in the swarm's ring
        self.denied = False  # the upstream refuses this node
        self.avoided = 0  # chunks it failed to read last; others go first
        self.lapsed: dict[int, float] = {}  # chunks that were to be read by others as well, and when it began


class Stream:
    """The lone node's lease for all that is missing."""

    __slots__ = ("node", "recalled")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.recalled = False


class Swarm:
    """The nodes of one zone that wait for one blob, those that hold it, and the state of its chunks there.

    `siblings` are the swarms of the same blob in other zones; without zones there are none.
    A chunk is `missing` (to be leased), leased (in `leases`), failed and waiting for its time, or taken for available:
    somebody has it or had it.
    """

    __slots__ = (
        "alone", "avoid", "awaited", "born", "chunk_size", "closing", "count", "denied", "digest", "everywhere",
        "failures", "far_ring", "full", "gateways", "hold_until", "holders", "leased", "leases", "lone_queue",
        "members", "missed", "missing", "near", "order", "over", "passed", "ring", "rollout", "seats", "shunned",
        "siblings", "since", "size", "source", "stuck", "tally", "votes",
    )  # fmt: skip

    def __init__(
        self,
        digest: str,
        size: int,
        chunk_size: int,
        rollout: Rollout,
        order: int,
        holders: Roster[Node],
        now: float,
        everywhere: Roster[Node] | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        self.chunk_size = chunk_size
        self.count = chunk_count(size, chunk_size)
        self.full = (1 << self.count) - 1
        self.rollout = rollout
        self.order = order
        self.born = now
        self.over = False
        self.closing = False  # everyone is being told to go
        self.seats: dict[Node, Seat] = {}  # everyone who waits, those voted dead too
        self.members: Roster[Node] = Roster()  # the live ones of them
        self.holders = holders  # live nodes with the whole blob, as far as they are near
        self.everywhere = holders if everywhere is None else everywhere  # the same of all zones
        self.siblings: list[Swarm] = []
        self.shunned: dict[int, set[Node]] = {}  # who failed to give a chunk to this zone
        self.stuck = 0  # chunks that can't be had from other zones though they are there
        self.missing = 0 if holders else self.full
        self.leases: dict[int, Lease] = {}
        self.leased = 0
        self.ring: deque[Seat] = deque()  # who gets the next lease; stale ones are dropped when met
        self.far_ring: deque[Seat] = deque()  # the same of nodes that read only when there is nobody else
        self.near = 0  # live members that stand in the ring otherwise
        self.awaited: frozenset[str] = frozenset()  # sites whose gateways may still come
        self.gateways: dict[str, Node] = {}  # by site: who carries the blob to and from other sites
        self.tally = Tally()
        self.source: dict[int, Node] = {}  # who said last that it read the chunk ...
        self.since: dict[int, float] = {}  # ... and when
        self.missed: dict[int, tuple[float, Node, set[Node]]] = {}  # should be had: first missed, and by all
        self.failures: dict[int, int] = {}
        self.passed: dict[int, tuple[float, int]] = {}  # chunks that were sat on: `since` and `passed` of their leases
        self.avoid: dict[int, Seat] = {}  # who failed last at a chunk
        self.votes: dict[Node, int] = {}  # whom the upstream refused since a chunk was last read, and the status
        self.denied: set[Node] = set()
        self.alone: Stream | None = None
        self.lone_queue: Node | None = None  # in whose heap of lone swarms it stands
        self.hold_until = 0.0  # no leases before

    @property
    def lone(self) -> bool:
        """Whether one node waits and nobody holds the blob, in all zones."""
        return len(self.members) == 1 and not self.everywhere and not self.siblings

    @property
    def apart(self) -> bool:
        """Whether some of its chunks may be in another zone."""
        return bool(self.siblings) or (bool(self.everywhere) and not self.holders)

    def turns(self) -> tuple[deque[Seat], int]:
        """Who gets the next lease, and how many those are: nodes near the upstream, unless it refuses them all."""
        refused = sum(node.reads for node in self.denied)
        if self.near > refused:
            return self.ring, self.near - refused
        return self.far_ring, len(self.members) - self.near - (len(self.denied) - refused)

    def known(self) -> int:
        """Chunks that a live node has said it has."""
        return self.full if self.holders else self.tally.some()

    def crowd(self) -> int:
        """How many live nodes take part."""
        return len(self.members) + len(self.holders)


class Family:
    """The rollouts of one image, one of each zone. `reader`: the zone that reads from upstream for all."""

    __slots__ = ("reader", "rollouts")

    def __init__(self) -> None:
        self.rollouts: dict[Rollout, None] = {}
        self.reader: str | None = None


class Rollout:
    """Swarms of one zone that were joined together: their credits and their order are shared."""

    __slots__ = (
        "carriers",
        "carry_failures",
        "carry_pace",
        "carrying",
        "credits_out",
        "cursor",
        "cut_until",
        "failures",
        "family",
        "given",
        "hold_until",
        "id",
        "load",
        "moved",
        "next_order",
        "number",
        "parked",
        "probed",
        "reads",
        "registry",
        "steps",
        "swarms",
        "total",
        "watched",
        "window",
        "zone",
    )

    def __init__(
        self, rollout: str, number: int, registry: Registry, window: int, zone: str = "", family: Family | None = None
    ) -> None:
        self.id = rollout
        self.zone = zone
        self.family = family or Family()
        self.family.rollouts[self] = None
        self.probed = False  # whether a read has shown how near its zone is to the upstream
        self.carrying = 0  # credits out for reads from other zones
        self.carriers: dict[Node, int] = {}  # unfinished reads of each node from other zones
        self.carry_failures: dict[Node, int] = {}  # such reads that failed since one made progress, by who was to read
        self.cut_until = 0.0  # no such reads before: other zones can't be reached
        self.carry_pace = 0.0  # seconds from such a lease to its half, on average
        self.number = number
        self.registry = registry
        self.swarms: list[Swarm] = []  # in the order of leases
        self.next_order = 0
        self.cursor = 0  # no swarm before it has missing chunks
        self.window = window  # credits that may be out
        self.credits_out = 0
        self.failures = 0  # reads that failed since one made progress
        self.hold_until = 0.0  # no leases before
        self.reads = Reads()
        self.given: dict[Node, int] = {}  # leases that each node was given, from upstream
        self.total = 0  # all of them
        self.moved = 0.0  # when one of its reads showed progress last, or the first of them began
        self.steps = 0  # times that more nodes were asked to read, since the upstream was brisk
        self.watched = False  # whether that is looked at
        self.load: dict[Node, int] = {}  # unfinished leases of each node
        self.parked: dict[Node, list[Seat]] = {}  # seats that left their rings because the node had its fill of leases


class Registry:
    """An upstream registry: what is out to it, over all rollouts."""

    __slots__ = ("credits_out", "name", "pace", "paused_until", "queue", "rollouts")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rollouts: dict[Rollout, None] = {}
        self.queue: OrderedDict[Rollout, None] = OrderedDict()  # rollouts that may want a lease, in turn
        self.credits_out = 0
        self.paused_until = 0.0
        self.pace = 0.0  # seconds from a lease to its half, on average


class Counters:
    """What has happened since the start; for metrics and tests."""

    __slots__ = (
        "banned", "bytes_carried", "bytes_read", "carried", "deaths", "expired", "failed", "gone", "granted",
        "over_quota", "regranted", "streams",
    )  # fmt: skip

    def __init__(self) -> None:
        self.granted = 0  # leases of chunks
        self.streams = 0  # leases of whole rests
        self.expired = 0
        self.failed = 0
        self.regranted = 0  # chunks put back because their holder failed, fell silent or left
        self.deaths = 0  # by vote
        self.gone = 0
        self.banned = 0
        self.over_quota = 0  # wants and holds beyond a node's share, or all nodes'
        self.bytes_read = 0  # from upstream, as told by Got, Returned and Done
        self.carried = 0  # leases of chunks from one zone to another
        self.bytes_carried = 0


class State:
    """Everything the swarm rules share."""

    __slots__ = (
        "counters",
        "families",
        "holders",
        "nodes",
        "registries",
        "rng",
        "rollouts",
        "rules",
        "sites",
        "started",
        "swarms",
        "timers",
        "zoned",
    )

    def __init__(self, rules: SwarmRules, rng: random.Random, now: float) -> None:
        self.rules = rules
        self.rng = rng
        self.started = now
        self.timers = Timers()
        self.counters = Counters()
        self.nodes: dict[bytes, Node] = {}
        self.sites: dict[str, dict[Node, None]] = {}  # the connected nodes of each site that may be gateways
        self.swarms: dict[str, dict[tuple[int, str], Swarm]] = {}  # by digest, then size and zone
        self.holders: dict[str, Roster[Node]] = {}
        self.zoned: dict[str, dict[str, Roster[Node]]] = {}  # those of them that are in a zone, by digest and zone
        self.rollouts: dict[tuple[str, str, str], Rollout] = {}  # by id, registry and zone
        self.families: dict[tuple[str, str], Family] = {}
        self.registries: dict[str, Registry] = {}

    def holders_of(self, digest: str) -> Roster[Node]:
        """The roster of a blob's holders, shared by its swarms."""
        roster = self.holders.get(digest)
        if roster is None:
            roster = self.holders[digest] = Roster()
        return roster

    def holders_near(self, digest: str, zone: str) -> Roster[Node]:
        """The same of those that are near a node of this zone: to one that is in none, all are."""
        if not zone:
            return self.holders_of(digest)
        zones = self.zoned.setdefault(digest, {})
        roster = zones.get(zone)
        if roster is None:
            roster = zones[zone] = Roster()
        return roster
