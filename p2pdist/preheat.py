"""Images that the tracker wants here before a daemon asks: pulled as a daemon would, reported as they come.

The tracker keeps the jobs and says them again to a node that comes back; here they live in memory.
"""

from __future__ import annotations

import asyncio
import platform
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog

from p2pdist.errors import DiskFull, InputError, P2pdistError, StorageError, UpstreamError, UpstreamNotFound
from p2pdist.oci import Digest, Index, Manifest, Platform, Reference, Repository, parse_manifest
from p2pdist.protocol import messages as wire
from p2pdist.pull import FoundManifest, Handle
from p2pdist.scope import Scope

MAX_JOBS = 64  # known at once; one more is refused
AT_ONCE = 2  # images
BLOBS = 4  # of one image at once; the swarm brings all of an image's layers from the first request on
TRIES = 4  # of what may work later
FIRST_PAUSE = 2.0  # seconds before the second one; three times as long before each further one
EVERY, NODES_PER_SECOND = 1.0, 500  # seconds between two reports, and how many nodes together report in a second
_REMEMBERED = 256  # results, in case the tracker missed one
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_log = structlog.get_logger("p2pdist.preheat")


class Source(Protocol):
    """Where images come from, with whatever guards the way to a daemon in force."""

    async def manifest(self, repository: Repository, target: str) -> FoundManifest:
        """A manifest by tag or digest."""

    async def blob(self, repository: Repository, digest: Digest) -> Handle:
        """A share in the one flight of a blob."""


class Swarms(Protocol):
    """What a preheat asks of the swarms."""

    nodes: int

    def arrived(self, digest: Digest) -> int:
        """Bytes of a blob that is on its way."""

    async def leave(self, image: Digest) -> None:
        """Nobody waits for this image any more."""


Keep = Callable[[Reference, Digest, int, str], Awaitable[None]]


@dataclass(slots=True)
class _Job:
    asked: wire.Preheat
    report: wire.Preheated
    task: asyncio.Task[None] | None = None
    images: list[Digest] = field(default_factory=list)  # manifests whose blobs are pulled
    blobs: dict[Digest, int] = field(default_factory=dict)  # size by digest
    done: set[Digest] = field(default_factory=set)


class Preheater:
    """Give it what the tracker says; it pulls, and says how it goes.

    Args:
        source: where images come from.
        swarms: this node's.
        send: says a message to the tracker, if one is there.
        keep: has an image kept for so many seconds, for the reason given.
    """

    def __init__(
        self,
        source: Source,
        swarms: Swarms,
        send: Callable[[wire.FromAgent], object],
        keep: Keep,
        *,
        rng: random.Random | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        machine: str = "",
    ) -> None:
        self.counts = {"done": 0, "failed": 0}
        self._source = source
        self._swarms = swarms
        self._send = send
        self._keep = keep
        self._rng = rng or random.Random()
        self._pause = pause
        self._own = Platform("linux", machine or _MACHINES.get(platform.machine(), platform.machine()))
        self._scope = Scope()
        self._jobs: dict[str, _Job] = {}
        self._results: OrderedDict[str, wire.Preheated] = OrderedDict()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def start(self) -> None:
        """Ready for `heard`."""
        await self._scope.start()

    async def stop(self) -> None:
        """End what is under way; the tracker says it again after a start."""
        await self._scope.stop()

    @property
    def running(self) -> int:
        """How many."""
        return len(self._jobs)

    def heard(self, message: wire.Preheat | wire.CancelPreheat) -> None:
        """The tracker wants an image here, or no longer."""
        known = self._jobs.get(message.id)
        if isinstance(message, wire.CancelPreheat):
            if known is not None and known.task is not None:
                known.task.cancel()
        elif known is not None:
            self._send(known.report)
        elif message.id in self._results:
            self._send(self._results[message.id])
        elif len(self._jobs) >= MAX_JOBS:
            self._send(wire.Preheated(message.id, "failed", error=f"{MAX_JOBS} preheats wait here already"))
        else:
            job = self._jobs[message.id] = _Job(message, wire.Preheated(message.id, "waiting"))
            job.task = self._scope.spawn(self._run(job))
            job.task.add_done_callback(lambda _: self._jobs.pop(message.id, None))

    # --- one job ------------------------------------------------------------------------------------------------

    async def _run(self, job: _Job) -> None:
        error = ""
        try:
            try:
                async with self._places, asyncio.TaskGroup() as tasks:
                    self._say(job, state="pulling")
                    reporter = tasks.create_task(self._report(job))
                    await self._patiently(job)
                    reporter.cancel()
            except* P2pdistError as group:
                error = _text(group)
        except asyncio.CancelledError:
            for image in job.images:
                await self._swarms.leave(image)
            raise
        except Exception:
            self._end(job, "an internal error; the agent's log says more")
            raise
        self._end(job, error)

    def _end(self, job: _Job, error: str) -> None:
        self._say(job, state="failed" if error else "done", error=error)
        self.counts["failed" if error else "done"] += 1
        self._results[job.asked.id] = job.report
        while len(self._results) > _REMEMBERED:
            self._results.popitem(last=False)
        _log.info("preheat over", job=job.asked.id, image=job.asked.reference, error=error or None)

    async def _patiently(self, job: _Job) -> None:
        delay = FIRST_PAUSE
        for left in reversed(range(TRIES)):
            try:
                await self._pull(job)
                break
            except* (UpstreamError, StorageError) as group:
                errors = _leaves(group)
                if not left or not all(map(_temporary, errors)):
                    raise
                _log.info("a preheat is tried again", job=job.asked.id, error=str(errors[0]))
            await self._pause(delay)
            delay *= 3

    async def _pull(self, job: _Job) -> None:
        reference = Reference.parse(job.asked.reference)
        repository = reference.repository
        found = await self._source.manifest(repository, reference.target)
        self._say(job, digest=str(found.digest))
        parsed = _parse(found)
        images = [parsed] if isinstance(parsed, Manifest) else []
        if isinstance(parsed, Index):
            for digest in self._chosen(parsed, job.asked.platforms):
                image = _parse(await self._source.manifest(repository, str(digest)))
                if isinstance(image, Index):
                    raise InputError(f"{digest} is an index within an index; name the inner one to have it pulled")
                images.append(image)
        job.images = [image.digest for image in images]
        job.blobs = {one.digest: one.size for image in images for one in (image.config, *image.layers) if not one.urls}
        gate = asyncio.Semaphore(BLOBS)
        async with asyncio.TaskGroup() as tasks:
            for digest in job.blobs:
                tasks.create_task(self._blob(job, repository, digest, gate))
        if job.asked.keep:
            await self._keep(reference, found.digest, job.asked.keep, f"preheat {job.asked.id}")

    async def _blob(self, job: _Job, repository: Repository, digest: Digest, gate: asyncio.Semaphore) -> None:
        async with gate:
            handle = await self._source.blob(repository, digest)
            try:
                (await handle.proved()).close()
            finally:
                handle.release()
            job.done.add(digest)

    def _chosen(self, index: Index, platforms: list[str]) -> list[Digest]:
        """The manifests of these platforms, of this node's own where none is named. UpstreamNotFound: none fits."""
        chosen: dict[Digest, None] = {}
        for wanted in map(_platform, platforms) if platforms else [self._own]:
            fitting = [one.digest for one in index.manifests if _fits(one.platform, wanted)]
            if not fitting:
                raise UpstreamNotFound(f"{index.digest} has no image for {wanted.os}/{wanted.architecture}")
            # A variant that isn't named is any: the first in the index is what a daemon would take, too.
            chosen[fitting[0]] = None
        return list(chosen)

    # --- reports ------------------------------------------------------------------------------------------------

    async def _report(self, job: _Job) -> None:
        """Now and then, as often as the tracker can take it from all nodes together."""
        while True:
            every = max(EVERY, self._swarms.nodes / NODES_PER_SECOND)
            await self._pause(self._rng.uniform(0.5, 1.5) * every)
            self._say(job)

    def _say(self, job: _Job, **changes: str) -> None:
        """Send a report if it differs from the last one."""
        sizes = (size if digest in job.done else self._swarms.arrived(digest) for digest, size in job.blobs.items())
        report = msgspec.structs.replace(
            job.report,
            blobs_done=len(job.done & job.blobs.keys()),
            blobs=len(job.blobs),
            size_done=sum(sizes),
            size=sum(job.blobs.values()),
            **changes,
        )
        if report != job.report:
            job.report = report
            self._send(report)


def _parse(found: FoundManifest) -> Manifest | Index:
    return parse_manifest(found.raw, found.media_type, found.digest.algorithm)


def _platform(text: str) -> Platform:
    os, _, rest = text.partition("/")
    architecture, _, variant = rest.partition("/")
    return Platform(os, architecture, variant)


def _fits(has: Platform | None, wanted: Platform) -> bool:
    """A variant that isn't wanted is any."""
    if has is None or (has.os, has.architecture) != (wanted.os, wanted.architecture):
        return False
    return wanted.variant in ("", has.variant)


def _temporary(error: BaseException) -> bool:
    """Whether trying again may help: a disk that is full, a policy and a missing image stay what they are."""
    return not isinstance(error, DiskFull) and getattr(error, "temporary", True)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    errors: list[BaseException] = []
    for error in group.exceptions:
        errors += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return errors


def _text(group: BaseExceptionGroup[BaseException]) -> str:
    return (str(_leaves(group)[0]) or "it did not work")[:512]
