"""Who says that whom sent wrong bytes, and who is shut out for it. Pure."""

from __future__ import annotations

from tracker.rules import BanRules

MAX_ACCUSED = 10_000  # nodes under accusation at once; the longest accused is forgotten first


class Bans:
    """Counts accusers; a node accused by enough different nodes on different hosts is banned for a while."""

    def __init__(self, rules: BanRules) -> None:
        self._rules = rules
        self._accusers: dict[bytes, dict[bytes, tuple[str, float]]] = {}  # accused -> accuser -> host and time
        self._accused_by: dict[bytes, dict[bytes, float]] = {}
        self._banned: dict[bytes, float] = {}

    def accuse(self, now: float, accuser: bytes, host: str, peer: bytes) -> bool:
        """`accuser`, whose session comes from `host`, accuses `peer`; True if that bans it now."""
        since = now - self._rules.window
        mine = {who: when for who, when in self._accused_by.get(accuser, {}).items() if when > since}
        if accuser == peer or peer in self._banned or len(mine) >= self._rules.max_accused_per_node:
            return False
        mine[peer] = now
        self._accused_by[accuser] = mine
        others = {who: said for who, said in self._accusers.pop(peer, {}).items() if said[1] > since and who != accuser}
        others[accuser] = (host, now)
        if len({host for host, _ in others.values()}) >= self._rules.accusers:
            self._banned[peer] = now + self._rules.ban_time
            return True
        self._accusers[peer] = others
        if len(self._accusers) > MAX_ACCUSED:
            del self._accusers[next(iter(self._accusers))]
        return False

    def forget_accuser(self, node: bytes) -> None:
        """A node's session is over; its accusations stand."""
        self._accused_by.pop(node, None)

    def set(self, node: bytes, until: float) -> None:
        """Ban a node until a time, whoever said so."""
        self._banned[node] = until

    def lift(self, node: bytes) -> None:
        """End a node's ban, and forget what it was accused of."""
        self._banned.pop(node, None)
        self._accusers.pop(node, None)

    def until(self, now: float, node: bytes) -> float | None:
        """When the node's ban ends; None if it isn't banned."""
        end = self._banned.get(node)
        if end is not None and end <= now:
            del self._banned[node]
            return None
        return end

    def active(self, now: float) -> dict[bytes, float]:
        """All bans and when they end."""
        for node in list(self._banned):
            self.until(now, node)
        return dict(self._banned)

    def accusers(self, peer: bytes) -> int:
        """How many nodes accuse it, within the window or a little longer."""
        return len(self._accusers.get(peer, ()))
