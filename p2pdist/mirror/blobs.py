"""Blobs: when their bytes may leave, and what happens when that turns out to have been too early.

A body starts once the whole digest is proved. One that takes long starts at `header_deadline` with the chunks proved
by attestation, the last one withheld until the digest is proved; if that fails, the connection is closed short and
the blob answered 404 for a while, so that the client goes on at the upstream (design page "clients", 5.4 to 5.8).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import structlog
from aiohttp import web

from p2pdist.errors import P2pdistError, UpstreamInvalid, UpstreamUnreachable
from p2pdist.mirror.answers import content_headers, etag
from p2pdist.mirror.cut import CutBlobs
from p2pdist.mirror.deadlines import Deadlines, now
from p2pdist.mirror.door import BlobAsked
from p2pdist.mirror.ranges import Part, Unsatisfiable, parse_range
from p2pdist.mirror.sending import Body, ClientGone, Exchange
from p2pdist.mirror.settings import MirrorSettings
from p2pdist.mirror.source import BlobHandle, Source
from p2pdist.oci import Digest
from p2pdist.store import BlobFile

BLOB_TYPE = "application/octet-stream"


class Blobs:
    """Answers requests for blobs of one application.

    Raises P2pdistError or TimeoutError as long as no header has gone out, and ClientGone.
    """

    def __init__(
        self, source: Source, settings: MirrorSettings, deadlines: Deadlines, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._settings = settings
        self._deadlines = deadlines
        self._cut = CutBlobs(settings.refuse, clock)
        self._log = structlog.get_logger("p2pdist.mirror")

    async def head(self, asked: BlobAsked, authorization: str | None) -> web.StreamResponse:
        """Size and type, without a download. A Range means nothing here (RFC 9110 section 14.2)."""
        self._refuse_cut(asked.digest)
        async with self._deadlines.within(self._settings.decide_deadline):
            size = await self._source.blob_info(asked.repository, asked.digest, authorization=authorization)
        headers = content_headers(asked.digest, BLOB_TYPE)
        return web.StreamResponse(headers={**headers, "Content-Length": str(size), "Accept-Ranges": "bytes"})

    async def get(self, exchange: Exchange, asked: BlobAsked, authorization: str | None) -> web.StreamResponse:
        """The whole blob or a part of it, sent."""
        self._refuse_cut(asked.digest)
        began = now()
        async with self._deadlines.by(began + self._settings.decide_deadline):
            handle = await self._source.blob(asked.repository, asked.digest, authorization=authorization)
        try:
            return await self._send(exchange, asked.digest, handle, began)
        except ClientGone:
            raise
        except Exception as error:  # whatever it is: once the headers are out, the body has to be cut
            if exchange.response is None:
                raise
            return self._cut_short(exchange, exchange.response, asked.digest, error)
        finally:
            handle.release()

    def _refuse_cut(self, digest: Digest) -> None:
        if digest in self._cut:
            raise UpstreamInvalid(f"{digest} failed while it was being served; the upstream has it")

    async def _proved(self, handle: BlobHandle, began: float) -> BlobFile | None:
        """The proved blob; None: it takes long, and what is proved of it may be followed."""
        settings = self._settings
        file = await self._proved_by(handle, began + settings.decide_deadline)
        if file is not None:
            return file
        if not handle.delivering:
            raise UpstreamUnreachable(f"nothing of it arrived within {settings.decide_deadline:g} s")
        if settings.serve == "auto":
            file = await self._proved_by(handle, began + settings.header_deadline)
            if file is not None or handle.size:
                return file
        async with self._deadlines.by(None):
            return await handle.proved()

    async def _proved_by(self, handle: BlobHandle, when: float) -> BlobFile | None:
        try:
            async with self._deadlines.by(when):
                return await handle.proved()
        except TimeoutError:
            if self._deadlines.over:
                raise
            return None

    async def _send(self, exchange: Exchange, digest: Digest, handle: BlobHandle, began: float) -> web.StreamResponse:
        file = await self._proved(handle, began)
        if file is None:
            return await self._follow(exchange, digest, handle, began)
        with file:
            response, start, end = _response(exchange.request, digest, file.size)
            body = Body(exchange, response, self._settings.client_stall)
            await body.begin()
            await body.write_file(file.fd, start, end)
            await body.end()
            return response

    async def _follow(self, exchange: Exchange, digest: Digest, handle: BlobHandle, began: float) -> web.StreamResponse:
        """Send proved chunks while the rest of the blob still arrives."""
        response, start, end = _response(exchange.request, digest, handle.size or 0)
        body = Body(exchange, response, self._settings.client_stall)
        pieces = handle.stream(start, end)
        piece: bytes | memoryview = b""
        try:
            if 0 < start < end:
                # It may be far from what arrives now. A 404 sends this one request to the upstream; a body without
                # bytes would be a hang, and containerd gives up on the fourth.
                async with self._deadlines.by(began + self._settings.range_deadline):
                    while not piece:
                        piece = await _next(pieces, end - start)
            await body.begin()
            while start < end:
                if not piece:
                    async with asyncio.timeout(self._settings.stall):
                        piece = await _next(pieces, end - start)
                await body.write(piece)
                start += len(piece)
                piece = b""
            await body.end()
            return response
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    def _cut_short(
        self, exchange: Exchange, response: web.StreamResponse, digest: Digest, error: Exception
    ) -> web.StreamResponse:
        self._cut.add(digest)
        exchange.cut()
        expected = isinstance(error, P2pdistError | OSError | TimeoutError)
        self._log.log(
            logging.WARNING if expected else logging.ERROR,
            "body cut short",
            digest=str(digest),
            sent=exchange.sent,
            why=str(error) or type(error).__name__,
            exc_info=None if expected else error,
        )
        return response


async def _next(pieces: AsyncIterator[bytes | memoryview], left: int) -> bytes | memoryview:
    piece = await anext(pieces, None)
    if piece is None:
        raise UpstreamInvalid(f"the chunks ended {left} bytes too early")
    if len(piece) > left:
        raise UpstreamInvalid(f"the chunks have {len(piece) - left} bytes too many")
    return piece


def _response(request: web.Request, digest: Digest, size: int) -> tuple[web.StreamResponse, int, int]:
    """The response to a GET of a blob of `size` bytes, and which bytes it carries: from, to before."""
    headers = {**content_headers(digest, BLOB_TYPE), "Accept-Ranges": "bytes"}
    # RFC 9110 section 13.1.5: with another validator than ours the Range is to be ignored.
    condition = request.headers.get("If-Range", etag(digest))
    wanted = ", ".join(request.headers.getall("Range", [])) if condition == etag(digest) else None
    match parse_range(wanted or None, size):
        case Part(start, end):
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
            return web.StreamResponse(status=206, headers=headers), start, end
        case Unsatisfiable():
            headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
            return web.StreamResponse(status=416, headers=headers), 0, 0
        case _:
            headers |= {"Content-Length": str(size)}
            return web.StreamResponse(headers=headers), 0, size
