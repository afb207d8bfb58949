"""Who is shut out, and why; and who says without proof that whom sent wrong bytes. Pure.

Without proof accusers are counted: nodes on different hosts. So many must agree that hosts of fewer than a share of
the cluster can't get an honest node banned, whatever they say (docs/adr/0032). What proves a lie is in `trials`.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

from tracker.rules import BanRules

MAX_ACCUSED = 10_000  # nodes under accusation at once; the longest accused is forgotten first


@dataclass(frozen=True, slots=True)
class Sentence:
    """Until when (Unix seconds), why, and what proves it (`trials.Proof`, packed; empty: accusers were counted)."""

    until: float
    reason: str
    evidence: bytes = b""


def host_of(address: str) -> str:
    """What counts as one host: an IPv4 address, or the /64 that whoever has one IPv6 address usually has whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6:
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class Hosts:
    """How many hosts the cluster has: those with a session, and those that had one within `window` seconds."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._sessions: dict[str, int] = {}
        self._left: OrderedDict[str, float] = OrderedDict()

    def came(self, host: str) -> None:
        """A session from there begins."""
        self._sessions[host] = self._sessions.get(host, 0) + 1
        self._left.pop(host, None)

    def went(self, now: float, host: str) -> None:
        """A session from there is over."""
        left = self._sessions[host] - 1
        if left:
            self._sessions[host] = left
        else:
            del self._sessions[host]
            self._left[host] = now

    def count(self, now: float) -> int:
        """As of `now`."""
        while self._left and next(iter(self._left.values())) <= now - self._window:
            self._left.popitem(last=False)
        return len(self._sessions) + len(self._left)


class Bans:
    """The accused and the banned. `now` is the time of the tracker's start (Unix seconds)."""

    def __init__(self, rules: BanRules, now: float) -> None:
        self.hosts = Hosts(rules.window)
        self._rules = rules
        self._started = now
        self._accusers: dict[bytes, dict[bytes, tuple[str, float]]] = {}  # accused -> accuser -> host and time
        self._accused_by: dict[bytes, dict[bytes, float]] = {}
        self._muted: dict[bytes, float] = {}
        self._banned: dict[bytes, Sentence] = {}

    def threshold(self, now: float) -> int:
        """How many hosts must agree, without proof, before a node is banned."""
        return max(self._rules.accusers, math.floor(self.hosts.count(now) * self._rules.accuser_share) + 1)

    def admits(self, now: float, accuser: bytes, peer: bytes) -> bool:
        """Whether an accusation is heard at all; it counts as one of the accuser's."""
        since = now - self._rules.window
        mine = {who: when for who, when in self._accused_by.get(accuser, {}).items() if when > since}
        if accuser == peer or self.until(now, peer) is not None or self._muted.get(accuser, 0.0) > now:
            return False
        if len(mine) >= self._rules.max_accused_per_node:
            return False
        mine[peer] = now
        self._accused_by[accuser] = mine
        return True

    def accuse(self, now: float, accuser: bytes, host: str, peer: bytes) -> bool:
        """`accuser`, whose session comes from `host`, accuses `peer` without proof; True if that bans it now."""
        if not self.admits(now, accuser, peer):
            return False
        since = now - self._rules.window
        others = {who: said for who, said in self._accusers.pop(peer, {}).items() if said[1] > since and who != accuser}
        others[accuser] = (host, now)
        hosts = len({host for host, _ in others.values()})
        if hosts >= self.threshold(now) and now >= self._started + self._rules.settle:
            reason = f"nodes on {hosts} hosts got wrong bytes from it"
            self._banned[peer] = Sentence(now + self._rules.ban_time, reason)
            return True
        self._accusers[peer] = others
        if len(self._accusers) > MAX_ACCUSED:
            del self._accusers[next(iter(self._accusers))]
        return False

    def mute(self, now: float, node: bytes) -> None:
        """It was to prove what it said, and proved the contrary: nothing it says of others is heard for a while."""
        self._muted = {who: until for who, until in self._muted.items() if until > now}
        self._muted[node] = now + self._rules.window
        for accused in list(self._accusers):
            self._accusers[accused].pop(node, None)
            if not self._accusers[accused]:
                del self._accusers[accused]

    def forget_accuser(self, node: bytes) -> None:
        """A node's session is over; its accusations stand."""
        self._accused_by.pop(node, None)

    def set(self, node: bytes, sentence: Sentence) -> None:
        """Ban a node, whoever said so."""
        self._banned[node] = sentence
        self._accusers.pop(node, None)

    def lift(self, node: bytes) -> None:
        """End a node's ban, and forget what it was accused of."""
        self._banned.pop(node, None)
        self._accusers.pop(node, None)

    def sentence(self, now: float, node: bytes) -> Sentence | None:
        """The ban in force on a node."""
        found = self._banned.get(node)
        if found is not None and found.until <= now:
            del self._banned[node]
            return None
        return found

    def until(self, now: float, node: bytes) -> float | None:
        """When the node's ban ends; None if it isn't banned."""
        found = self.sentence(now, node)
        return found.until if found is not None else None

    def active(self, now: float) -> dict[bytes, float]:
        """All bans and when they end."""
        return {node: found.until for node in list(self._banned) if (found := self.sentence(now, node)) is not None}

    def accusers(self, peer: bytes) -> int:
        """How many nodes accuse it, within the window or a little longer."""
        return len(self._accusers.get(peer, ()))
