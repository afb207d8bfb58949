"""One blob on its way to this node: its exchange, who waits for it, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from p2pdist.errors import DigestMismatch
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.store import StoredBlob
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.plan import Plan, PlannedBlob
from p2pdist.swarm.tracker import Tracker


@dataclass(eq=False, slots=True)
class Rollout:
    """The transfers of one plan. Times are loop times in seconds."""

    plan: Plan
    began: float
    transfers: list[Transfer] = field(default_factory=list)
    last_progress: float = 0.0
    last_interest: float = 0.0
    joined: bool = False  # a tracker knows of it

    @property
    def unfinished(self) -> list[Transfer]:
        """What is still on its way, in the plan's order."""
        return [transfer for transfer in self.transfers if not transfer.done.done()]


@dataclass(eq=False, slots=True)
class Transfer:
    """One blob of a rollout. `done` ends with the stored blob or with the error that ended it."""

    rollout: Rollout
    blob: PlannedBlob
    done: asyncio.Future[StoredBlob]
    began: float  # loop time
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # the exchange exists, or the transfer is over
    exchange: Exchange | None = None
    clients: int = 0
    alone: bool = False  # a stream of everything that is missing runs
    recalled: bool = False  # ... and is to stop after the chunk at hand
    reads: int = 0  # reads from upstream that run
    reading: set[int] = field(default_factory=set)  # the chunks they are under lease for
    cut: int = 0  # the chunk size that was agreed on, bytes
    opening: bool = False  # it is being staged
    finishing: bool = False
    mending: bool = False  # chunks that somebody says are false are taken from the swarm once more
    from_upstream: int = 0  # bytes

    @property
    def delivering(self) -> bool:
        """Some source has delivered bytes for this blob or its rollout, and nothing says that they are wrong."""
        doubtful = self.exchange is not None and self.exchange.doubted is not None  # mended perhaps, not proved yet
        return not doubtful and (self.from_upstream > 0 or self.rollout.last_progress > 0)

    @property
    def doubted(self) -> bool:
        """Every chunk was proved and the whole was wrong: chunks are read from upstream again."""
        return self.exchange is not None and self.exchange.doubted is not None and not self.mending

    def fail(self, error: Exception) -> None:
        """End with `error`."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # read: nobody may be waiting
        if self.exchange is not None:
            self.exchange.fail(error)
        self.ready.set()


class Transfers:
    """What is on its way, by blob and by rollout; the one place where a transfer leaves again."""

    def __init__(self, engine: Engine, tracker: Tracker) -> None:
        self._engine = engine
        self._tracker = tracker
        self._rollouts: dict[Digest, Rollout] = {}
        self._running: dict[str, Transfer] = {}

    @property
    def all(self) -> list[Transfer]:
        """Every transfer, the oldest first."""
        return list(self._running.values())

    @property
    def rollouts(self) -> list[Rollout]:
        """Every rollout, the oldest first."""
        return list(self._rollouts.values())

    def find(self, digest: str) -> Transfer | None:
        """The transfer of this blob."""
        return self._running.get(digest)

    def of(self, exchange: Exchange) -> Transfer | None:
        """The transfer that `exchange` belongs to, unless it is over."""
        transfer = self._running.get(exchange.name)
        return transfer if transfer is not None and transfer.exchange is exchange else None

    def rollout(self, plan: Plan, now: float) -> Rollout:
        """The running or new rollout of `plan`, wanted `now` (loop time)."""
        rollout = self._rollouts.get(plan.rollout)
        if rollout is None:
            rollout = self._rollouts[plan.rollout] = Rollout(plan, now)
        rollout.last_interest = now
        return rollout

    def add(self, transfer: Transfer) -> None:
        """It begins."""
        self._running[str(transfer.blob.digest)] = transfer
        transfer.rollout.transfers.append(transfer)

    def settle(self, transfer: Transfer) -> None:
        """It is over, whichever way; the same blob can begin anew."""
        if self._running.get(str(transfer.blob.digest)) is transfer:
            del self._running[str(transfer.blob.digest)]
        rollout = transfer.rollout
        if transfer in rollout.transfers:
            rollout.transfers.remove(transfer)
        if not rollout.transfers and self._rollouts.get(rollout.plan.rollout) is rollout:
            del self._rollouts[rollout.plan.rollout]

    async def end(self, transfer: Transfer, error: Exception) -> None:
        """It failed. The partial stays on disk for a later start, except where its bytes are known to be wrong."""
        transfer.fail(error)
        self._tracker.send(wire.Leave(str(transfer.blob.digest)))
        if transfer.exchange is not None:
            self._engine.remove(transfer.exchange)
            await transfer.exchange.close(keep=not isinstance(error, DigestMismatch))
        self.settle(transfer)  # last: the partial can be staged again only now
