"""Where preheats are ordered, looked at and cancelled: any replica can, because all of it is in the State.

    POST   /v1/jobs        an `Order` as JSON: 201 and the job
    GET    /v1/jobs        all that are known, the newest first, without their nodes
    GET    /v1/jobs/{id}   one, with its nodes
    DELETE /v1/jobs/{id}   cancel it

For certificates of the admin role (`p2pdist-tracker admin create`); for everybody where the tracker is insecure.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from p2pdist.errors import InputError, OperationError, StorageError
from tracker.orders import JOBS, PROGRESS, read
from tracker.preheats import Job, Order, PreheatRules, Progress, Summary
from tracker.state import State

log = structlog.get_logger()


class TooMany(OperationError):
    """As many preheats run as may."""


class Desk:
    """`wake`: has the leader look now, if it is this replica."""

    def __init__(self, state: State, rules: PreheatRules, now: Callable[[], float], wake: Callable[[], None]) -> None:
        self._state = state
        self._rules = rules
        self._now = now
        self._wake = wake

    async def take(self, order: Order, by: str) -> Job:
        """Accept an order, durably. InputError, TooMany, StorageError."""
        order = order.checked()
        running = [job for job, summary in (await self._all()).values() if summary.state == "running"]
        if len(running) >= self._rules.max_running:
            raise TooMany(f"{len(running)} preheats run already (preheat.max_running); cancel one, or wait")
        while True:
            job = Job(secrets.token_hex(5), order, self._now(), by)
            if await self._state.create(JOBS, job.id, msgspec.msgpack.encode(job)):
                break
        log.info("preheat ordered", job=job.id, image=order.reference, by=by)
        self._wake()
        return job

    async def again(self, order: Order, seconds: float) -> Job | None:
        """A job for the very same that is running, or was ordered in the last `seconds` and did not fail."""
        order = order.checked()
        for job, summary in (await self._all()).values():
            lately = summary.state == "running" or (summary.state == "done" and self._now() - job.created < seconds)
            if job.order == order and lately:
                return job
        return None

    async def listed(self) -> list[dict[str, Any]]:
        """All jobs, the newest first. StorageError."""
        found = sorted((await self._all()).values(), key=lambda one: one[0].created, reverse=True)
        return [_shown(job, summary) for job, summary in found]

    async def show(self, number: str) -> dict[str, Any] | None:
        """One job with its nodes; None: there is none. StorageError."""
        job = read(await self._record(JOBS, number), Job).get(number)
        if job is None:
            return None
        progress = read(await self._record(PROGRESS, number), Progress).get(number, Progress())
        nodes = [
            {"node": node, **msgspec.structs.asdict(state)}
            for node, state in sorted(progress.nodes.items(), key=lambda item: (item[1].name, item[0]))
        ]
        return _shown(job, progress) | {"nodes": nodes}

    async def cancel(self, number: str) -> bool:
        """Have it stopped; False: there is no such job. One that is over stays what it is. StorageError."""
        while True:
            record = await self._state.get(JOBS, number)
            job = read({number: record}, Job).get(number) if record is not None else None
            if record is None or job is None:
                return False
            if not job.cancelled:
                new = msgspec.msgpack.encode(msgspec.structs.replace(job, cancelled=self._now()))
                if not await self._state.replace(JOBS, number, record, new):
                    continue
                self._wake()
            return True

    async def _record(self, table: str, number: str) -> dict[str, bytes]:
        record = await self._state.get(table, number)
        return {} if record is None else {number: record}

    async def _all(self) -> dict[str, tuple[Job, Summary]]:
        jobs = read(await self._state.all(JOBS), Job)
        summaries = read(await self._state.all(PROGRESS), Summary)
        return {number: (job, summaries.get(number, Summary())) for number, job in jobs.items()}


def _shown(job: Job, progress: Summary | Progress) -> dict[str, Any]:
    order = job.order
    state = "cancelled" if job.cancelled and progress.state == "running" else progress.state
    return {
        "id": job.id,
        "reference": order.reference,
        "platforms": order.platforms,
        "labels": order.labels,
        "wanted": order.nodes,
        "keep": order.keep,
        "created": job.created,
        "by": job.by,
        "state": state,
        "finished": progress.finished,
        "counts": progress.counts,
        "left_out": progress.left_out,
    }


class DeskPages:
    """The pages. `who`: whose request it is, for people; raises web.HTTPException if it may not."""

    def __init__(self, desk: Desk, who: Callable[[web.Request], str]) -> None:
        self._desk = desk
        self._who = who

    def routes(self, app: web.Application) -> None:
        """Add them."""
        app.router.add_post("/v1/jobs", self._order)
        app.router.add_get("/v1/jobs", self._list)
        app.router.add_get("/v1/jobs/{id}", self._show)
        app.router.add_delete("/v1/jobs/{id}", self._cancel)

    async def _order(self, request: web.Request) -> web.Response:
        by = self._who(request)
        if request.content_type != "application/json":  # of which a web page must ask first, and is not answered
            return _error(415, "an order is application/json")
        try:
            order = msgspec.json.decode(await request.read(), type=Order)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # what was sent is not repeated: there may be a password in it
            return _error(400, f"not an order: {error}")
        try:
            job = await self._desk.take(order, by)
            return web.json_response(await self._desk.show(job.id), status=201)
        except InputError as error:
            return _error(400, str(error))
        except TooMany as error:
            return _error(429, str(error))
        except StorageError as error:
            return _unreachable(error)

    async def _list(self, request: web.Request) -> web.Response:
        self._who(request)
        try:
            return web.json_response({"jobs": await self._desk.listed()})
        except StorageError as error:
            return _unreachable(error)

    async def _show(self, request: web.Request) -> web.Response:
        self._who(request)
        try:
            found = await self._desk.show(request.match_info["id"])
        except StorageError as error:
            return _unreachable(error)
        return web.json_response(found) if found is not None else _error(404, "there is no such preheat")

    async def _cancel(self, request: web.Request) -> web.Response:
        self._who(request)
        try:
            if not await self._desk.cancel(request.match_info["id"]):
                return _error(404, "there is no such preheat")
            return web.json_response(await self._desk.show(request.match_info["id"]))
        except StorageError as error:
            return _unreachable(error)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


def _unreachable(error: StorageError) -> web.Response:
    log.warning("preheats can't be looked at", error=str(error))
    return _error(503, "the tracker's state can't be reached; try again")
