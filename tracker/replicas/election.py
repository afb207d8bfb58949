"""Who leads when the State can't say: what a replica remembers, and what follows from it. Pure.

A replica's id begins with 16 hex digits of the cluster's keys: two whose ids begin differently are not of one cluster.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from tracker.replicas.wire import Replica

LIFETIME = 1.5  # seconds for which the State keeps a leader that doesn't renew
RENEW = 0.5  # seconds between two renewals, and between two beats of a link
QUIET = 1.2  # seconds without a beat after which the State is asked whether the leader still leads
SILENT = 3.0  # ... after which its link is given up, if the State can't be reached
DEAF = 10.0  # ... and if it can
ORPHANED = 3.0  # seconds without a leader after which agents are sent away: they have rules of their own for that


def replica_id(*keys: bytes) -> str:
    """A new id of a replica that has these keys of the cluster."""
    return f"{hashlib.sha256(b'|'.join(keys)).hexdigest()[:16]}-{secrets.token_hex(8)}"


def same_keys(one: str, other: str) -> bool:
    """Whether two replicas, by their ids, have the same keys."""
    return one[:17] == other[:17]


def outranks(term: int, replica: str, other_term: int, other: str) -> bool:
    """Whether, of two that lead, the first one goes on: the later term; the lower id where they are the same."""
    return (term, other) > (other_term, replica)


@dataclass(slots=True)
class Memory:
    """What a replica remembers of the others. `term`: the highest seen."""

    me: str
    address: str = ""
    term: int = 0
    leader: Replica | None = None
    hint: str = ""  # an address at which somebody says that it leads
    others: dict[str, str] = field(default_factory=dict)  # address -> id

    def hear(self, leader: Replica, term: int, replicas: Iterable[Replica] = ()) -> None:
        """A leader has said so, and who its replicas are."""
        self.leader, self.term, self.hint = leader, max(self.term, term), ""
        known = {one.address: one.id for one in replicas} or self.others
        self.others = known | {leader.address: leader.id}
        self.others.pop(self.address, None)

    def candidates(self) -> list[tuple[str, bool]]:
        """Whom to ask with no State to ask, in this order: address, and whether we wait for it if it answers at all.

        Whoever said that it leads; the last leader; then those with lower ids than ours: the lowest one that answers
        is to lead, and each of us finds the same.
        """
        last = self.leader.address if self.leader is not None else ""
        lower = sorted((one, address) for address, one in self.others.items() if one < self.me and address != last)
        asked = {self.hint: False, last: False} | {address: True for _, address in lower}
        return [(address, waits) for address, waits in asked.items() if address and address != self.address]
