"""The swarms of this node: which blobs are wanted, and who does what about them.

Between the tracker (who else, which lease), the engine (chunks from peers) and the upstream registry stands this
service; each transfer ends with a stored blob or an error. With no tracker it goes on as the design page on the swarm
says; when nothing moves for `stuck_seconds`, it reads from upstream itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from p2pdist.errors import StorageError, UpstreamDenied, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.limits import MAX_HOLDS_PER_MESSAGE
from p2pdist.scope import Scope
from p2pdist.store import Store, StoredBlob
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.crossing import Carry, Crossing
from p2pdist.swarm.doubt import Doubt
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.evidence import Evidence
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.finishing import Finisher
from p2pdist.swarm.joining import Joining
from p2pdist.swarm.plan import Plan
from p2pdist.swarm.reader import UpstreamReader
from p2pdist.swarm.rescue import Rescue
from p2pdist.swarm.seeds import Seeds
from p2pdist.swarm.settings import SwarmSettings
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Rollout, Transfer, Transfers
from p2pdist.upstream import Registry

__all__ = ["SwarmService", "SwarmSettings"]


class SwarmService:
    """See the module. It is the engine's `Host`, and takes what the tracker says."""

    def __init__(
        self,
        store: Store,
        registry: Callable[[str], Registry],
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        settings: SwarmSettings,
        clock: Callable[[], float] = time.time,
        carry: Carry | None = None,
    ) -> None:
        self.nodes = 1
        self.denied: Callable[[Digest], bool] = lambda digest: False  # no transfer of such a blob begins
        self._store = store
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._clock = clock
        self._scope = Scope()
        self._stopping = False
        self._orphaned = False
        self._transfers = Transfers(engine, tracker)
        self._reader = UpstreamReader(registry, engine, tracker, self._transfers)
        self._crossing = Crossing(carry, engine, tracker, self._transfers, self._reader) if carry is not None else None
        self._seeds = Seeds(store, engine, attestor, tracker, self._scope, settings.live_seeds, clock)
        self._evidence = Evidence(store, tracker, self._scope, clock)
        self._doubt = Doubt(
            engine,
            attestor,
            tracker,
            self._reader,
            clock,
            self._evidence,
            self._transfers,
            lambda one: self._joining.join(one.rollout),
        )
        finisher = Finisher(store, tracker, self._transfers, self._seeds, self._doubt, self._scope)
        self._joining = Joining(
            store, engine, attestor, tracker, self._transfers, finisher, self._seeds, settings.join_seconds, clock
        )
        self._rescue = Rescue(engine, tracker, self._transfers, self._reader, self._joining, self._scope, settings)

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Ready for `want`; the engine runs already."""
        self._loop = asyncio.get_running_loop()
        await self._scope.start()
        self._scope.spawn(self._rescue.watch())

    async def stop(self) -> None:
        """Leave every swarm; partial blobs stay on disk for the next start."""
        self._stopping = True
        for transfer in self._transfers.all:  # first: the engine still runs, and must bring nothing any more
            if transfer.exchange is not None:
                self._engine.remove(transfer.exchange)
        self._seeds.withdraw()
        await self._scope.stop()
        for transfer in self._transfers.all:
            await self._transfers.end(transfer, StorageError("the agent is stopping"))
        await self._seeds.close()

    @property
    def transfers(self) -> list[Transfer]:
        """What is on its way."""
        return self._transfers.all

    @property
    def seeds(self) -> int:
        """Stored blobs that are open for peers."""
        return len(self._seeds)

    @property
    def known(self) -> list[wire.PeerInfo]:
        """Neighbours of an earlier run, for a start without a tracker."""
        return self._joining.known

    @known.setter
    def known(self, peers: list[wire.PeerInfo]) -> None:
        self._joining.known = peers

    @property
    def bytes_from_upstream(self) -> int:
        """Body bytes that came from upstream registries."""
        return self._reader.bytes_from_upstream

    def count_upstream(self, count: int) -> None:
        """Bytes came from upstream on another way than a swarm's."""
        self._reader.bytes_from_upstream += count

    # --- wanting -------------------------------------------------------------------------------------------------

    def want(self, plan: Plan, digest: Digest) -> Transfer:
        """The one transfer of `digest`, which is not stored; started with the rest of its plan if it does not run yet.

        Await its `done` shielded: others may be waiting for it too.
        """
        now = self._loop.time()
        running = self._transfers.find(str(digest))
        if running is not None:
            running.rollout.last_interest = now
            return running
        rollout = self._transfers.rollout(plan, now)
        new: list[Transfer] = []
        wanted: Transfer | None = None
        for blob in plan.blobs:
            if self._transfers.find(str(blob.digest)):
                continue
            if blob.digest != digest and (self._store.find(blob.digest) or self.denied(blob.digest)):
                continue
            transfer = Transfer(rollout, blob, self._loop.create_future(), now)
            self._transfers.add(transfer)
            new.append(transfer)
            if blob.digest == digest:
                wanted = transfer
        if wanted is None:
            raise ValueError(f"{digest} is not in the plan of {plan.rollout}")
        self._scope.spawn(self._begin(rollout, new))
        return wanted

    async def _begin(self, rollout: Rollout, new: list[Transfer]) -> None:
        await self._joining.begin(rollout, new)
        self._rescue.help(rollout, self._loop.time())

    def arrived(self, digest: Digest) -> int:
        """Bytes proved of a blob that is on its way, roughly."""
        transfer = self._transfers.find(str(digest))
        if transfer is None or transfer.exchange is None:
            return 0
        return min(transfer.blob.size, transfer.exchange.have.bit_count() * transfer.exchange.chunk_size)

    async def leave(self, image: Digest) -> None:
        """The transfers of an image (its manifest) that no client here waits for end; what is proved of them stays."""
        rollout = [transfer for transfer in self._transfers.all if transfer.rollout.plan.rollout == image]
        if not any(transfer.clients for transfer in rollout):
            for transfer in rollout:
                await self._transfers.end(transfer, UpstreamUnreachable("nobody waits for this blob any more"))

    async def withdraw(self, digest: Digest, error: Exception) -> None:
        """Nobody gets this blob from here any more: its transfer ends with `error`, and it is open for no peer."""
        transfer = self._transfers.find(str(digest))
        if transfer is not None:
            await self._transfers.end(transfer, error)
        await self.lost(digest)

    async def lost(self, digest: Digest) -> None:
        """A blob is in the store no longer; peers don't get it from here."""
        await self._seeds.forget(str(digest))
        self._tracker.send(wire.Drops([str(digest)]))

    def stored(self, blob: StoredBlob) -> None:
        """A blob came into the store on another way; peers may have it."""
        self._tracker.send(wire.Holds([str(blob.digest)]))

    # --- what the engine reports ---------------------------------------------------------------------------------

    def wanted_by_peer(self, digest: str, size: int, chunk_size: int) -> None:
        """See `engine.Host`."""
        if self._transfers.find(digest) is None and not self._stopping:
            self._seeds.wanted(digest, size, chunk_size)

    def peer_dead(self, peer: bytes) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Dead(peer))

    def peer_lied(self, peer: bytes, exchange: Exchange, index: int, why: str) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Accuse(peer, exchange.name, index))

    def chunks_missing(self, exchange: Exchange, indexes: list[int]) -> None:
        """See `engine.Host`."""
        self._tracker.send(wire.Miss(exchange.name, indexes))

    def neighbours_wanted(self, count: int) -> None:
        """See `engine.Host`."""
        for transfer in self._transfers.all:
            if transfer.exchange is not None and not transfer.exchange.whole:
                self._tracker.send(wire.More(transfer.exchange.name, count))
                return

    def read_alone(self, exchange: Exchange, index: int) -> None:
        """See `engine.Host`."""
        transfer = self._transfers.of(exchange)
        if transfer is None or self._stopping or transfer.alone or transfer.doubted:
            return
        if self._engine.leased(exchange, index):
            transfer.reads += 1
            self._scope.spawn(self._reader.lease(transfer, exchange, index, index + 1))

    # --- what the tracker says -----------------------------------------------------------------------------------

    def tracker_state(self, connected: bool) -> None:
        """The session with the tracker came or went."""
        if connected:
            self._orphaned = False
            self._engine.orphaned(None)
        elif not self._orphaned:
            self._orphaned = True
            self._doubt.orphaned()
            self._engine.orphaned(self.nodes)

    def tracker_message(self, message: wire.FromTracker) -> None:
        """A message came from the tracker."""
        match message:
            case wire.Welcome():
                self._welcomed(message)
            case wire.Joined():
                self._scope.spawn(self._joining.joined(message))
            case wire.Neighbours():
                self._engine.link(message.peers)
            case wire.Lease():
                self._leased(message)
            case wire.Recall():
                self._recalled(message.digest)
            case wire.Throttle():
                self._reader.pause(message.registry, message.seconds)
            case wire.Gone():
                self._gone(message)
            case wire.Show():
                self._evidence.show(message)
            case wire.Search() | wire.Suspects():
                self._doubt.told(message)
            case wire.Banned():
                self._evidence.banned(message.node)
                known = self._attestor.banned(message.node, self._clock())  # every session begins with all bans
                self._attestor.ban(message.node, message.until)
                self._engine.ban(message.node, max(0.0, message.until - self._clock()))
                if message.until > self._clock() and not known:
                    self._doubt.banned(message.node)
            case wire.Pong():
                self.nodes = message.nodes

    def _welcomed(self, message: wire.Welcome) -> None:
        self._attestor.join(message.membership, message.cluster_key)
        self.nodes = message.nodes
        digests = [str(blob.digest) for blob in self._store.stored()]
        for start in range(0, len(digests), MAX_HOLDS_PER_MESSAGE):
            self._tracker.send(wire.Holds(digests[start : start + MAX_HOLDS_PER_MESSAGE]))
        for rollout in self._transfers.rollouts:
            self._joining.join(rollout)
        self._evidence.again()

    def _leased(self, message: wire.Lease) -> None:
        transfer = self._transfers.find(message.digest)
        if message.alone and transfer is not None and transfer.alone:
            return  # a new session; the stream runs
        if transfer is not None and not transfer.doubted:
            transfer.reads += 1
            if message.alone:
                transfer.alone, transfer.recalled = True, False  # now: a recall may come before the stream begins
            self._scope.spawn(self._take_lease(transfer, message))

    async def _take_lease(self, transfer: Transfer, lease: wire.Lease) -> None:
        await transfer.ready.wait()
        exchange = transfer.exchange
        if exchange is None or transfer.done.done() or transfer.doubted or lease.first >= exchange.count:
            transfer.reads -= 1
            transfer.alone = transfer.alone and not lease.alone
            return
        if lease.alone:
            await self._reader.stream(transfer, exchange)
            return
        end = min(exchange.count, lease.first + lease.count)
        for index in range(lease.first, end):
            if not self._engine.leased(exchange, index):
                self._reader.report(exchange, index)
        if lease.source is not None and self._crossing is not None:
            await self._crossing.lease(transfer, exchange, lease.first, end, lease.source)
        else:
            await self._reader.lease(transfer, exchange, lease.first, end)

    def _recalled(self, digest: str) -> None:
        transfer = self._transfers.find(digest)
        if transfer is None:
            return
        if transfer.alone:
            transfer.recalled = True
        elif transfer.exchange is not None and not transfer.doubted:
            self._tracker.send(wire.Returned(digest, transfer.exchange.bitmap()))

    def _gone(self, message: wire.Gone) -> None:
        transfer = self._transfers.find(message.digest)
        if transfer is not None:
            text = f"{message.digest}: the upstream answers {message.status}"
            error = UpstreamNotFound(text) if message.status == 404 else UpstreamDenied(text)
            self._scope.spawn(self._transfers.end(transfer, error))
