"""A gateway between sites: one engine inside the site (the mesh), one across (BitTorrent over uTP), one exchange each.

Both engines work on the same exchange: what one proves, the other has to give. So a blob crosses the link between sites
about once, to a gateway, and spreads from there by the mesh. What nobody near has, and reading without a tracker, stay
the inner engine's business: it knows the site.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.engine import Engine, EngineStats, Host
from p2pdist.swarm.exchange import Exchange

_CARRIED = 4096  # blobs
_PATIENCE = 5.0  # seconds without a byte from other sites after which they bring nothing
_SITES = 1024  # gateways whose site is remembered
_ANOTHER = "another site"


class GatewayEngine:
    """See the module, and `swarm.engine.Engine`. Peers with a site are reached by the outer engine."""

    def __init__(self, inner: Engine, outer: Engine) -> None:
        self.inner = inner
        self.outer = outer
        self.name = f"{inner.name}+{outer.name}"
        self.discovery = inner.discovery
        self._sites: OrderedDict[bytes, str] = OrderedDict()  # of gateways that this node was told about
        self._carried: OrderedDict[str, None] = OrderedDict()  # blobs for which it is its site's gateway
        self._wanted: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._exchanges: dict[str, Exchange] = {}
        self._brought = (0.0, 0)  # when the outer engine was last seen to bring something, and what it had brought

    @property
    def stats(self) -> EngineStats:
        """The sum of both."""
        mine, theirs = self.inner.stats, self.outer.stats
        return EngineStats(
            bytes_in=mine.bytes_in + theirs.bytes_in,
            bytes_out=mine.bytes_out + theirs.bytes_out,
            bytes_redundant=mine.bytes_redundant + theirs.bytes_redundant,
            chunks_in=mine.chunks_in + theirs.chunks_in,
            busy=mine.busy + theirs.busy,
            stalls=mine.stalls + theirs.stalls,
            refused=mine.refused + theirs.refused,
            refused_connections=mine.refused_connections + theirs.refused_connections,
            slow_connections=mine.slow_connections + theirs.slow_connections,
            bad_requests=mine.bad_requests + theirs.bad_requests,
            ended_certificates=mine.ended_certificates + theirs.ended_certificates,
            requests_out=mine.requests_out + theirs.requests_out,
        )

    @property
    def port(self) -> int:
        """Where the nodes of this site reach it; other sites: `outer.port`."""
        return self.inner.port

    async def start(self, host: Host) -> None:
        """Listen; ready when it returns."""
        self._host = host
        self._loop = asyncio.get_running_loop()
        await self.inner.start(_Inside(host, self))
        try:
            await self.outer.start(_Outside(host, self))
        except BaseException:
            await self.inner.stop()
            raise

    async def stop(self) -> None:
        """Leave all swarms, close every link; nothing of it runs afterwards."""
        try:
            await self.outer.stop()
        finally:
            await self.inner.stop()

    def add(self, exchange: Exchange) -> None:
        """Take part in this blob's swarm: on both sides where this node is the gateway for it."""
        self._exchanges[exchange.name] = exchange
        self.inner.add(exchange)
        if exchange.name in self._carried:
            self.outer.add(exchange)

    def remove(self, exchange: Exchange) -> None:
        """Leave it."""
        if self._exchanges.get(exchange.name) is exchange:
            del self._exchanges[exchange.name]
        self.inner.remove(exchange)
        self.outer.remove(exchange)

    def link(self, peers: Iterable[PeerInfo]) -> None:
        """Neighbours to connect to, each by the engine that reaches it."""
        inside: list[PeerInfo] = []
        outside: list[PeerInfo] = []
        for peer in peers:
            if peer.site:
                self._sites[peer.node] = peer.site
                outside.append(peer)
                if peer.blob:
                    self._carry(peer.blob)
            else:
                inside.append(peer)
        while len(self._sites) > _SITES:
            self._sites.popitem(last=False)
        self.inner.link(inside)
        self.outer.link(outside)

    def _carry(self, blob: str) -> None:
        if blob in self._carried:
            return
        self._carried[blob] = None
        while len(self._carried) > _CARRIED:
            self._carried.popitem(last=False)
        exchange = self._exchanges.get(blob)
        wanted = self._wanted.pop(blob, None)
        if exchange is not None:
            self.outer.add(exchange)
        elif wanted is not None:
            self._host.wanted_by_peer(blob, *wanted)

    def wanted_early(self, blob: str, size: int, chunk_size: int) -> None:
        """Another site's gateway wants a blob before the tracker has said that this node is to carry it."""
        self._wanted[blob] = (size, chunk_size)
        while len(self._wanted) > _CARRIED:
            self._wanted.popitem(last=False)

    def brings(self, exchange: Exchange) -> bool:
        """Whether chunks of the blob come from another site: what nobody near has is on its way."""
        now, count = self._loop.time(), self.outer.stats.bytes_in
        if count != self._brought[1]:
            self._brought = (now, count)
        return exchange.name in self._carried and bool(self.outer.links()) and now - self._brought[0] < _PATIENCE

    def carries(self, blob: str) -> bool:
        """Whether this node is its site's gateway for the blob, as far as it was told."""
        return blob in self._carried

    def site_of(self, node: bytes) -> str | None:
        """The other site that a gateway is in ("another site" where it said nothing); None: it is in this one."""
        if node in self._sites:
            return self._sites[node]
        return _ANOTHER if any(peer.node == node for peer in self.outer.links()) else None

    def links(self) -> list[PeerInfo]:
        """The neighbours there are."""
        outside = [
            PeerInfo(peer.node, peer.host, peer.port, self._sites.get(peer.node, _ANOTHER))
            for peer in self.outer.links()
        ]
        return [*self.inner.links(), *outside]

    def ban(self, peer: bytes, seconds: float) -> None:
        """Drop its links and refuse new ones for a while."""
        self.inner.ban(peer, seconds)
        self.outer.ban(peer, seconds)

    def leased(self, exchange: Exchange, index: int) -> bool:
        """This node is about to read chunk `index` from upstream; False: no need, it is here."""
        self.outer.leased(exchange, index)
        return self.inner.leased(exchange, index)

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a leased chunk is here."""
        self.inner.coming(exchange, index)

    def unleased(self, exchange: Exchange, index: int) -> None:
        """The read is over."""
        self.inner.unleased(exchange, index)
        self.outer.unleased(exchange, index)

    def orphaned(self, nodes: int | None) -> None:
        """The tracker went away when the cluster had `nodes` nodes; None: it is back."""
        self.inner.orphaned(nodes)


class _Inside:
    """The host, as the inner engine sees it."""

    def __init__(self, host: Host, engine: GatewayEngine) -> None:
        self._host = host
        self._engine = engine

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        self._host.wanted_by_peer(digest, size, chunk_size)

    def peer_dead(self, peer: bytes) -> None:
        self._host.peer_dead(peer)

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        self._host.peer_lied(peer, exchange, index, why)

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        if not self._engine.brings(exchange):
            self._host.chunks_missing(exchange, indexes)

    def neighbours_wanted(self, count: int) -> None:
        self._host.neighbours_wanted(count)

    def read_alone(self, exchange: Exchange, index: int) -> None:
        self._host.read_alone(exchange, index)


class _Outside:
    """The host, as the outer engine sees it."""

    def __init__(self, host: Host, engine: GatewayEngine) -> None:
        self._host = host
        self._engine = engine

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        if self._engine.carries(digest):
            self._host.wanted_by_peer(digest, size, chunk_size)
        else:
            self._engine.wanted_early(digest, size, chunk_size)

    def peer_dead(self, peer: bytes) -> None:
        self._host.peer_dead(peer)

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        self._host.peer_lied(peer, exchange, index, why)

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        """The inner engine looks after that."""

    def neighbours_wanted(self, count: int) -> None:
        """A gateway has few by design; without any, it may have missed who is the gateway of the other site now."""
        if not self._engine.outer.links():
            self._host.neighbours_wanted(1)

    def read_alone(self, exchange: Exchange, index: int) -> None:
        """The inner engine looks after that."""
