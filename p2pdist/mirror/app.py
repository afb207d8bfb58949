"""The OCI distribution read API as an aiohttp application. Every request goes through `Mirror.answer`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from p2pdist.errors import P2pdistError, UpstreamInvalid, UpstreamNotFound
from p2pdist.mirror.answers import EVERYWHERE, content_headers, not_servable, ping, refused
from p2pdist.mirror.blobs import Blobs
from p2pdist.mirror.deadlines import Deadlines
from p2pdist.mirror.door import (
    REGISTRY_HEADER,
    Asked,
    BlobAsked,
    ManifestAsked,
    Ping,
    ReferrersAsked,
    Refusal,
    TagsAsked,
    parse,
)
from p2pdist.mirror.headers import accepts, matches, next_page
from p2pdist.mirror.sending import Body, ClientGone, ClientStalled, Exchange
from p2pdist.mirror.settings import MirrorSettings
from p2pdist.mirror.source import RawAnswer, Source
from p2pdist.oci import Digest

OnServed = Callable[[str, int, int], None]
"""Told of every request when it is over: kind (ping, manifest, blob, referrers, tags, other), status, bytes of body."""


@dataclass(slots=True)
class MirrorCounts:
    """What ran into a limit; for metrics."""

    refused_connections: int = 0  # there were as many as may be
    slow_connections: int = 0  # whose first request didn't come
    large_requests: int = 0
    stalled_clients: int = 0  # that didn't take what was sent
    turned_away: int = 0  # requests by a wrong name, or without the password


class Mirror:
    """One application's requests: how many are open, and what they are answered."""

    def __init__(
        self, source: Source, settings: MirrorSettings, on_served: OnServed | None, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._settings = settings
        self._on_served = on_served
        self.deadlines = Deadlines()
        self._blobs = Blobs(source, settings, self.deadlines, clock)
        self._log = structlog.get_logger("p2pdist.mirror")
        self._open = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.stopping = False
        self.counts = MirrorCounts()
        self.on_request: Callable[[web.Request], None] = lambda _: None

    async def quiet(self) -> None:
        """Wait until no request is being answered."""
        await self._quiet.wait()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        exchange = Exchange(request)
        self.on_request(request)
        asked = self._may_ask(request) or parse(
            request.method, request.raw_path, request.headers.getall(REGISTRY_HEADER, [])
        )
        self._open += 1
        self._quiet.clear()
        try:
            response = await self._answer_safely(exchange, asked)
            if exchange.response is None:
                exchange.take(response)
            if self.stopping:
                response.force_close()
            return response
        finally:
            self._open -= 1
            if self._open == 0:
                self._quiet.set()
            if self._on_served is not None:
                self._on_served(_kind(asked), exchange.status, exchange.sent)

    def _may_ask(self, request: web.Request) -> Refusal | None:
        hosts = request.headers.getall("Host", [])
        objection = self._settings.access.objection(
            hosts[0] if len(hosts) == 1 else None, request.headers.get("Authorization")
        )
        if objection is not None:
            self.counts.turned_away += 1
        return objection

    async def _answer_safely(self, exchange: Exchange, asked: Asked | Refusal) -> web.StreamResponse:
        """An answer, whatever happens: while no header is out, trouble is a 404 and the daemon asks the upstream."""
        if isinstance(asked, Refusal):
            return refused(asked)
        try:
            return await self._answer(exchange, asked)
        except ClientGone as gone:
            self.counts.stalled_clients += isinstance(gone, ClientStalled)
            exchange.cut()
            return exchange.response or web.Response()
        except TimeoutError:
            trouble: BaseException | str = "no answer in time"
        except P2pdistError as error:
            trouble = error
        except Exception:  # noqa: BLE001 - a bug here or below must not cost the daemon its pull
            self._log.exception("unexpected error", path=exchange.request.path)
            trouble = "internal error"
        if exchange.response is not None:
            exchange.cut()
            return exchange.response
        self._log.info("not served", path=exchange.request.path, why=str(trouble))
        return refused(not_servable(asked, trouble))

    async def _answer(self, exchange: Exchange, asked: Asked) -> web.StreamResponse:
        request = exchange.request
        authorization = self._settings.access.upstreams(request.headers.get("Authorization"))
        match asked:
            case Ping():
                return ping()
            case ManifestAsked():
                return await self._manifest(exchange, asked, authorization)
            case BlobAsked() if request.method == "HEAD":
                return await self._blobs.head(asked, authorization)
            case BlobAsked():
                return await self._blobs.get(exchange, asked, authorization)
            case ReferrersAsked():
                return await self._referrers(exchange, asked, authorization)
            case TagsAsked():
                return await self._tags(exchange, asked, authorization)

    async def _manifest(
        self, exchange: Exchange, asked: ManifestAsked, authorization: str | None
    ) -> web.StreamResponse:
        request = exchange.request
        async with self._deadlines_within():
            found = await self._source.manifest(asked.repository, asked.target, authorization=authorization)
        # The last look before it leaves: wrong bytes are a failed pull without a fallback.
        computed = Digest.of(found.raw, (asked.digest or found.digest).algorithm)
        if computed != (asked.digest or found.digest):
            raise UpstreamInvalid(f"{asked.repository} {asked.target}: the manifest's digest is {computed}")
        if not accepts(request.headers.getall("Accept", []), found.media_type):
            raise UpstreamNotFound(f"it is a {found.media_type}, which the request does not accept")
        headers = content_headers(computed, found.media_type)
        if matches(request.headers.getall("If-None-Match", []), computed):
            return web.Response(status=304, headers=headers)
        return await self._send(exchange, headers, found.raw)

    async def _referrers(
        self, exchange: Exchange, asked: ReferrersAsked, authorization: str | None
    ) -> web.StreamResponse:
        async with self._deadlines_within():
            answer = await self._source.referrers(
                asked.repository, asked.digest, asked.artifact_type, authorization=authorization
            )
        # A part of the list would hide signatures, and the next page can't be asked for through here.
        if answer.status != 200 or _header(answer, "Link") is not None:
            raise UpstreamNotFound(f"the upstream does not list what refers to {asked.digest}")
        headers = {**EVERYWHERE, "Content-Type": answer.media_type}
        filters = _header(answer, "OCI-Filters-Applied")
        if filters is not None:
            headers["OCI-Filters-Applied"] = filters
        return await self._send(exchange, headers, answer.body)

    async def _tags(self, exchange: Exchange, asked: TagsAsked, authorization: str | None) -> web.StreamResponse:
        async with self._deadlines_within():
            answer = await self._source.tags_list(asked.repository, asked.query, authorization=authorization)
        if answer.status != 200:
            raise UpstreamNotFound(f"the upstream does not list the tags of {asked.repository}")
        headers = {**EVERYWHERE, "Content-Type": answer.media_type}
        link = _header(answer, "Link")
        if link is not None:
            headers["Link"] = next_page(link, asked)
        return await self._send(exchange, headers, answer.body)

    async def _send(self, exchange: Exchange, headers: dict[str, str], content: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(content))})
        if exchange.request.method == "HEAD":
            return response
        # As a blob's: megabytes for a client that doesn't read are not kept for ever.
        body = Body(exchange, response, self._settings.client_stall)
        await body.begin()
        await body.write(content)
        await body.end()
        return response

    def _deadlines_within(self) -> AbstractAsyncContextManager[None]:
        return self.deadlines.within(self._settings.decide_deadline)


MIRROR = web.AppKey("mirror", Mirror)


def app(
    source: Source,
    settings: MirrorSettings,
    *,
    on_served: OnServed | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> web.Application:
    """The application that answers from `source`. `clock`, in seconds, times how long a cut blob is refused.

    Its runner needs `handler_cancellation=True`, else a client that leaves is noticed only when it is written to.
    """
    mirror = Mirror(source, settings, on_served, clock)

    @web.middleware
    async def door(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await mirror.answer(request)

    # A middleware instead of routes: aiohttp's router decodes and normalises paths, and answers some itself.
    application = web.Application(middlewares=[door])
    application[MIRROR] = mirror
    return application


def _kind(asked: Asked | Refusal) -> str:
    match asked:
        case Ping():
            return "ping"
        case ManifestAsked():
            return "manifest"
        case BlobAsked():
            return "blob"
        case ReferrersAsked():
            return "referrers"
        case TagsAsked():
            return "tags"
        case Refusal():
            return "other"


def _header(answer: RawAnswer, name: str) -> str | None:
    return next((value for key, value in answer.headers.items() if key.lower() == name.lower()), None)
