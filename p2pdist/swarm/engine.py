"""The Protocol behind which an engine moves chunks between nodes, and what it may ask of its host.

Leases, attestations, proof, the plan and the fallback know no engine; an engine knows no tracker and no registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.exchange import Exchange


@dataclass(slots=True)
class EngineStats:
    """Counters since the start; bytes are payload."""

    bytes_in: int = 0
    bytes_out: int = 0
    bytes_redundant: int = 0  # came although the chunk was here already
    chunks_in: int = 0
    busy: int = 0  # requests answered 503
    stalls: int = 0  # transfers given up because nothing came
    refused: int = 0  # chunks whose bytes or attestation were wrong
    refused_connections: int = 0  # of other nodes: there were as many as may be, of all or of one node
    slow_connections: int = 0  # closed: no request came, or what was sent wasn't taken
    bad_requests: int = 0  # too large, or none that this port knows
    ended_certificates: int = 0  # links closed because the node's certificate had ended
    requests_out: int = 0  # now: each is a chunk in flight to this node


class Host(Protocol):
    """What an engine asks of the node it runs on. Every call is synchronous and does no IO."""

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        """A neighbour wants a blob that no exchange is open for: open one if it is stored here."""

    def peer_dead(self, peer: bytes) -> None:
        """Transfers from `peer` were silent for too long; its link was dropped."""

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        """`peer` sent a chunk that does not match what is attested."""

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        """Nobody near has these chunks although nothing is on its way."""

    def neighbours_wanted(self, count: int) -> None:
        """Too few links are open."""

    def read_alone(self, exchange: Exchange, index: int) -> None:
        """No tracker is there and this node's turn has come: read chunk `index` from upstream."""


class Engine(Protocol):
    """Moves chunks of the exchanges it was given, from and to neighbours. Proof is `Exchange.prove`'s."""

    name: str
    discovery: float  # seconds in which it finds who else wants a blob with nobody's help; 0: it does not

    @property
    def stats(self) -> EngineStats:
        """Counters since the start."""

    @property
    def port(self) -> int:
        """Where it listens."""

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns."""

    async def stop(self) -> None:
        """Leave all swarms, close every link; nothing of it runs afterwards."""

    def add(self, exchange: Exchange) -> None:
        """Take part in this blob's swarm; exchanges added earlier are fetched first."""

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""

    def link(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, on top of those there are."""

    def links(self) -> list[PeerInfo]:
        """The neighbours there are."""

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while."""

    def leased(self, exchange: Exchange, index: int) -> bool:
        """This node is about to read chunk `index` from upstream; False: no need, it is here."""

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a leased chunk is here."""

    def unleased(self, exchange: Exchange, index: int) -> None:
        """The read is over."""

    def orphaned(self, nodes: int | None) -> None:
        """The tracker went away when the cluster had `nodes` nodes; None: it is back."""
