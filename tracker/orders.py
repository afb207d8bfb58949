"""Between the cluster and what operators have ordered, as it is written down: preheats and the deny list.

One of these runs where the cluster is. Tables of the State: `jobs` (a `Job` by its id), `job_progress` (a `Progress`
by the same id), `deny`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from p2pdist.errors import StorageError
from tracker.cluster import Cluster
from tracker.deny import listed
from tracker.preheats import Job, PreheatRules, Progress, Summary, outdated
from tracker.state import State
from tracker.timers import Outbox

JOBS, PROGRESS = "jobs", "job_progress"
LOOK = 1.0  # seconds: how soon an order that another replica took begins here, and how often progress is written
log = structlog.get_logger()
T = TypeVar("T")


class OrderDriver:
    """`run` it as long as this tracker leads; `wake` it when an order was taken here."""

    def __init__(
        self,
        state: State,
        cluster: Cluster,
        rules: PreheatRules,
        now: Callable[[], float],
        dispatch: Callable[[Outbox], None],
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._rules = rules
        self._now = now
        self._dispatch = dispatch
        self._wake = asyncio.Event()
        self._version: int | None = None

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    async def run(self) -> None:
        """Carry orders out until cancelled. A State that can't be reached is asked again."""
        while True:
            self._wake.clear()
            try:
                await self.step()
            except StorageError as error:
                self._version = None
                log.warning("orders are carried out as far as they are known", error=str(error))
            try:
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def step(self) -> None:
        """Once: take over what is new, do what is due, write down what has changed. StorageError."""
        version = await self._state.version()
        if version != self._version:
            self._dispatch(self._cluster.deny({text: one.why for text, one in (await listed(self._state)).items()}))
            jobs = read(await self._state.all(JOBS), Job)
            records = await self._state.all(PROGRESS)
            over = {number: one.finished for number, one in read(records, Summary).items() if one.state != "running"}
            first = self._version is None  # later on, what runs is known here best
            known = read({key: records[key] for key in records.keys() - over.keys()}, Progress) if first else {}
            self._dispatch(self._cluster.jobs.define(self._now(), jobs, known, over.keys()))
            for number in {*outdated(self._rules, self._now(), over), *(records.keys() - jobs.keys())}:
                await self._state.remove(JOBS, number)
                await self._state.remove(PROGRESS, number)
            self._version = version
        self._dispatch(self._cluster.jobs.tick(self._now()))
        await self._write()

    async def _write(self) -> None:
        due = self._cluster.jobs.changed(self._now())
        left = dict(due)
        try:
            for number, progress in due.items():
                if await self._state.get(JOBS, number) is not None:
                    await self._state.put(PROGRESS, number, msgspec.msgpack.encode(progress))
                del left[number]
        finally:
            self._cluster.jobs.rewrite(left)


def read(records: dict[str, bytes], kind: type[T]) -> dict[str, T]:
    """Records as what they are; those that can't be read are left out and logged."""
    found = {}
    for number, record in records.items():
        try:
            found[number] = msgspec.msgpack.decode(record, type=kind)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            log.error("a preheat's record can't be read", job=number, error=str(error))
    return found
