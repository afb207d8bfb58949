"""Drives a cluster's decisions on a clock of its own, plays its nodes, and checks what must always hold."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.protocol import labels as names
from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import PeerInfo
from tracker.bitmaps import from_wire
from tracker.cluster import Cluster
from tracker.lateness import Lateness
from tracker.model import Node, Rollout, Seat, Swarm
from tracker.rules import BanRules, ContentRules, SwarmRules

KIB = 1024
CHUNK = 64 * KIB
REGISTRY = "registry.example"


def digest(name: object) -> str:
    return "sha256:" + hashlib.sha256(str(name).encode()).hexdigest()


def node_id(number: int) -> bytes:
    return number.to_bytes(32, "big")


def bitmap(*indexes: int) -> bytes:
    bits = sum(1 << index for index in indexes)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


class Driver:
    """Nodes are numbers; blobs are names of `chunks` chunks of 64 KiB."""

    def __init__(self, seed: int = 1, content: ContentRules | None = None, bans: BanRules | None = None, **rules):
        self.now = 1_000_000.0
        rules.setdefault("settle_window", 0.0)
        self.rules = SwarmRules(**rules)
        self.authority = Ed25519PrivateKey.generate()
        self.cluster = Cluster(
            self.rules, content or ContentRules(), bans or BanRules(settle=0.0), random.Random(seed), self.now,
            self.authority.public_key().public_bytes_raw(),
        )  # fmt: skip
        self.swarms = self.cluster.swarms
        self.said: list[tuple[int, wire.FromTracker]] = []  # everything, in order
        self.inbox: dict[int, list[wire.FromTracker]] = defaultdict(list)
        self.checking = True

    # --- time ---

    def later(self, seconds: float) -> None:
        """Let time pass, with every timer at its time."""
        end = self.now + seconds
        while True:
            deadline = self.cluster.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self._take(self.cluster.tick(self.now))
        self.now = end
        self._take(self.cluster.tick(self.now))

    def _take(self, outbox) -> list[tuple[int, wire.FromTracker]]:
        taken = [(int.from_bytes(node, "big"), message) for node, message in outbox]
        self.said += taken
        for number, message in taken:
            self.inbox[number].append(message)
        if self.checking:
            check(self.cluster, self.rules, self.now)
        return taken

    # --- nodes ---

    def connect(self, *numbers: int, host: str | None = None, zone: str = "") -> None:
        labels = {names.ZONE: zone, names.CROSSING: names.LEASES} if zone else {}
        for number in numbers:
            address = host or f"host-{number}"
            peer = PeerInfo(node_id(number), address, 7000)
            self._take(self.cluster.connected(self.now, peer, address, f"node-{number}", labels))

    def disconnect(self, *numbers: int) -> None:
        for number in numbers:
            self._take(self.cluster.disconnected(self.now, node_id(number)))

    def say(self, number: int, message: wire.FromAgent) -> list[tuple[int, wire.FromTracker]]:
        """A node says something; what the tracker answers at once, to whomever."""
        return self._take(self.cluster.handle(self.now, node_id(number), message))

    def join(
        self, number: int, *blobs: str, chunks: int = 8, have: dict | None = None, rollout=None, registry=REGISTRY
    ):
        """Join, connecting first if need be."""
        if node_id(number) not in self.swarms.state.nodes:
            self.connect(number)
        wants = []
        for blob in blobs:
            bits = (have or {}).get(blob)
            wants.append(wire.Want(digest(blob), chunks * CHUNK, CHUNK, bitmap(*bits) if bits is not None else b""))
        return self.say(number, wire.Join(digest(rollout or blobs[0]), registry, wants))

    def half(self, number: int, blob: str, index: int):
        return self.say(number, wire.Half(digest(blob), index))

    def got(self, number: int, blob: str, index: int):
        return self.say(number, wire.Got(digest(blob), index, b"", b""))

    def done(self, number: int, blob: str):
        return self.say(number, wire.Done(digest(blob)))

    def failed(self, number: int, blob: str, index: int, status: int = 500, final: bool = False, retry_after=0.0):
        return self.say(number, wire.Failed(digest(blob), index, status, final, retry_after))

    def miss(self, number: int, blob: str, *indexes: int):
        return self.say(number, wire.Miss(digest(blob), list(indexes)))

    # --- what was said ---

    def take(self, number: int, kind: type) -> list:
        """The messages of a kind that the node got since the last look."""
        found = [message for message in self.inbox[number] if isinstance(message, kind)]
        self.inbox[number] = [message for message in self.inbox[number] if not isinstance(message, kind)]
        return found

    def swarm(self, blob: str) -> Swarm:
        (swarm,) = self.swarms.state.swarms[digest(blob)].values()
        return swarm

    def leased(self, blob: str) -> dict[int, int]:
        """Chunk to the number of the node that is to read it, now."""
        found = self.swarms.state.swarms.get(digest(blob), {})
        return {
            index: int.from_bytes(lease.seat.node.id, "big")
            for swarm in found.values()
            for index, lease in swarm.leases.items()
        }


def leases(said, blob: str | None = None) -> list[tuple[int, int]]:
    """(node, chunk) of the chunk leases among messages."""
    return [
        (number, index)
        for number, message in said
        if isinstance(message, wire.Lease) and not message.alone and (blob is None or message.digest == digest(blob))
        for index in range(message.first, message.first + message.count)
    ]


def of(said, kind: type) -> list:
    """(node, message) of one kind."""
    return [(number, message) for number, message in said if isinstance(message, kind)]


# --- what must always hold ---


def check(cluster: Cluster, rules: SwarmRules, now: float) -> None:
    """The invariants of the swarms, by looking at everything."""
    state = cluster.swarms.state
    for registry in state.registries.values():
        assert registry.rollouts or registry.paused_until > now
        assert registry.credits_out == sum(rollout.credits_out for rollout in registry.rollouts)
        assert 0 <= registry.credits_out <= rules.registry_credits
        for rollout in registry.rollouts:
            _check_rollout(rollout, rules, now, cluster.swarms._leases.lateness)
    for name, sizes in state.swarms.items():
        assert sizes
        for swarm in sizes.values():
            assert swarm.digest == name and not swarm.over
            _check_swarm(swarm, state.nodes)
    held = defaultdict(set)
    for node in state.nodes.values():
        assert len(node.alone) <= rules.alone_leases
        for name, seat in node.seats.items():
            assert seat.node is node and seat.swarm.digest == name and seat.swarm.seats[node] is seat
        for name in node.holds:
            assert name not in node.seats
            if node.live:
                held[name].add(node)
    for name, holders in state.holders.items():
        assert set(holders) == held.pop(name, set())
        assert holders or name in state.swarms
    assert not held


def _check_rollout(rollout: Rollout, rules: SwarmRules, now: float, lateness: Lateness) -> None:
    found = {lease for swarm in rollout.swarms for lease in swarm.leases.values()}
    assert rollout.swarms
    across = [lease for lease in found if lease.source is not None]
    assert rollout.credits_out == sum(lease.credit for lease in found if lease.source is None) <= rules.credits
    assert rollout.carrying == sum(lease.credit for lease in across) <= rules.zone_credits
    assert rollout.carriers == Counter(lease.seat.node for lease in across)
    assert all(lease.seat.node.zone == rollout.zone != lease.source.zone for lease in across)
    assert rollout in rollout.family.rollouts
    load: dict[Node, int] = defaultdict(int)
    for lease in found:
        load[lease.seat.node] += lease.source is None
        assert lease in lease.seat.leases and lease.left and lease.deadline >= now
    assert rollout.load == {node: count for node, count in load.items() if count}
    assert all(count <= rules.leases_per_node for count in load.values())
    if rollout.credits_out < rollout.window and rollout.registry.credits_out < rules.registry_credits:
        for swarm in rollout.swarms:
            assert swarm.apart or not _idle(swarm, load, rules, now, lateness), "a chunk could be leased, and isn't"


def _idle(swarm: Swarm, load: dict[Node, int], rules: SwarmRules, now: float, lateness: Lateness) -> bool:
    """Whether a chunk could be leased now, or a stream started."""
    rollout = swarm.rollout
    if now < max(rollout.registry.paused_until, rollout.hold_until, swarm.hold_until) or swarm.alone is not None:
        return False
    if swarm.lone and now >= swarm.born + rules.alone_after:
        node = swarm.members.only()
        ahead = any(
            other.lone and node in other.members and (other.rollout.number, other.order) < (rollout.number, swarm.order)
            for other in (seat.swarm for seat in node.seats.values())
        )
        free = len(node.alone) < rules.alone_leases and not ahead
        return free and not swarm.leases and bool(swarm.full & ~swarm.tally.some())

    near = {node for node in swarm.members if node.reads and not swarm.seats[node].denied}
    readers = near or {node for node in swarm.members if not swarm.seats[node].denied}
    others_denied = len(readers) == 1

    def able(seat: Seat) -> bool:
        node = seat.node
        return (
            node in readers
            and load[node] < lateness.most(node)
            and not lateness.has_its_share(rollout, node)
            and now >= node.benched_until
            and (bool(swarm.missing & ~seat.avoided) or others_denied)
        )

    return bool(swarm.missing) and any(able(swarm.seats[node]) for node in swarm.members)


def _check_swarm(swarm: Swarm, nodes: dict[bytes, Node]) -> None:
    assert swarm.seats
    assert set(swarm.members) == {node for node in swarm.seats if node.live}
    assert all(nodes[node.id] is node and node.seats[swarm.digest].swarm is swarm for node in swarm.seats)
    assert swarm.near == sum(node.reads for node in swarm.members)
    assert all(node in swarm.members or node in swarm.holders for node in swarm.gateways.values())
    known = 0
    for node, seat in swarm.seats.items():
        assert not seat.known & ~swarm.full
        if node.live:
            known |= seat.known
        else:
            assert not seat.leases
    assert swarm.tally.some() == known
    assert swarm.leased == sum(1 << index for index in swarm.leases)
    assert not swarm.missing & swarm.leased
    assert not swarm.missing & ~swarm.full
    for index, lease in swarm.leases.items():
        assert lease.left >> index & 1 and lease.seat.swarm is swarm
        assert swarm.seats[lease.seat.node] is lease.seat
    if swarm.alone is not None:
        assert not swarm.leases and swarm.alone.node in swarm.members and swarm in swarm.alone.node.alone
        assert swarm.lone or swarm.alone.recalled
    ring = [seat for seat in swarm.ring if seat.queued]
    assert len(ring) == len(set(ring))


__all__ = ["CHUNK", "REGISTRY", "Driver", "bitmap", "check", "digest", "from_wire", "leases", "node_id", "of"]
