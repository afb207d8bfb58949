"""One blob on its way to this node: its exchange, who waits for it, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from p2pdist.store import StoredBlob
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.plan import Plan, PlannedBlob


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
    finishing: bool = False
    distrusted: bool = False  # the whole digest failed once: every chunk is read from upstream again
    from_upstream: int = 0  # bytes

    @property
    def delivering(self) -> bool:
        """Some source has delivered bytes for this blob or its rollout."""
        return self.from_upstream > 0 or self.rollout.last_progress > 0

    def fail(self, error: Exception) -> None:
        """End with `error`."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # read: nobody may be waiting
        if self.exchange is not None:
            self.exchange.fail(error)
        self.ready.set()
