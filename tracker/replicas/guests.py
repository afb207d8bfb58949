"""Who is in the cluster, wherever the sessions are: what a leader needs to know of an agent, and how it answers."""

from __future__ import annotations

from typing import Protocol

import msgspec

from p2pdist.protocol.messages import FromAgent, FromTracker, Labels, PeerInfo


class Guest(msgspec.Struct, frozen=True, array_like=True):
    """An agent with a session. `address`: the host it comes from; `labels`: as its Hello says."""

    peer: PeerInfo
    address: str
    name: str
    labels: Labels = {}


class Source(Protocol):
    """Where sessions are: this replica, or another one behind a link."""

    def tell(self, node: bytes, message: FromTracker) -> None:
        """Say something to an agent, if it is still there."""

    def end(self, node: bytes, reason: str) -> None:
        """End an agent's session: it has another one elsewhere."""


class Voice(Protocol):
    """Who decides for the sessions of this replica: its own cluster, or the leader's at the end of a link."""

    def came(self, guest: Guest) -> None:
        """An agent's session begins; an older one of the same node is over."""

    def said(self, node: bytes, messages: list[FromAgent]) -> None:
        """An agent said something."""

    def went(self, node: bytes) -> None:
        """An agent's session is over."""

    @property
    def nodes(self) -> int:
        """How many agents the cluster has."""
