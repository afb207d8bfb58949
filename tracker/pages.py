"""What a tracker says of itself: health for whoever starts and balances it, status for people, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from p2pdist import __version__
from tracker.book import BanBook
from tracker.enrol import Enrolment
from tracker.lag import Lag
from tracker.replicas.replica import ThisReplica
from tracker.report import Standing, metrics, status
from tracker.state.reach import Reach
from tracker.visits import Visits


class Pages:
    """`GET /healthz`, `/v1/status` and `/metrics`. `now`: Unix time."""

    def __init__(
        self,
        now: Callable[[], float],
        replica: ThisReplica,
        visits: Visits,
        reach: Reach,
        book: BanBook,
        lag: Lag,
        enrolment: Enrolment | None,
    ) -> None:
        self._now = now
        self._replica = replica
        self._visits = visits
        self._reach = reach
        self._book = book
        self._lag = lag
        self._enrolment = enrolment

    def routes(self, app: web.Application) -> None:
        """Add them."""
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/metrics", self._metrics)

    @property
    def standing(self) -> Standing:
        """This replica among the others."""
        replica = self._replica
        leads = replica.leading is not None
        return Standing(
            role="leads" if leads else "follows" if replica.follows else "looks for a leader",
            leader="" if leads else replica.follows,
            replicas=[branch.address for branch in replica.branches],
            orphaned=replica.orphaned,
            state_trouble=self._reach.trouble,
            outages=self._reach.outages,
            unwritten=self._book.unwritten,
            sessions=len(self._visits),
            nodes=self._visits.nodes,
            lag=self._lag.most(asyncio.get_running_loop().time()),
            membership=self._enrolment.counts if self._enrolment is not None else None,
        )

    def render_metrics(self) -> tuple[bytes, str]:
        """The metrics, and their content type."""
        leading = self._replica.leading
        return metrics(leading.cluster if leading is not None else None, self._visits.door.traffic, self.standing)

    async def _health(self, request: web.Request) -> web.Response:
        """503: agents are better off at another replica."""
        standing = self.standing
        document = {
            "status": "no replica leads" if standing.orphaned else "ok",
            "version": __version__,
            "nodes": standing.nodes,
            "role": standing.role,
            "state": "unreachable" if standing.state_trouble else "ok",
        }
        return web.json_response(document, status=503 if standing.orphaned else 200)

    async def _status(self, request: web.Request) -> web.Response:
        leading = self._replica.leading
        cluster = leading.cluster if leading is not None else None
        names = {node: guest.name for node, guest in leading.guests.items()} if leading is not None else {}
        return web.json_response(status(self._now(), cluster, names, self._visits.door.traffic, self.standing))

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = self.render_metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})
