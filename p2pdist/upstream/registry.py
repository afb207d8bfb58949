"""One upstream registry, as the OCI distribution-spec's read half sees it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import quote

import aiohttp
import stamina
from yarl import URL

from p2pdist.errors import InvalidDigest, UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamThrottled
from p2pdist.oci import ACCEPT_MANIFESTS, Digest, Repository
from p2pdist.oci.mediatypes import normalised
from p2pdist.protocol.limits import MAX_MANIFEST
from p2pdist.upstream.answers import FetchedManifest, ManifestInfo, RawAnswer, error_of
from p2pdist.upstream.auth import Authenticator
from p2pdist.upstream.body import BlobBody
from p2pdist.upstream.challenge import Challenge, parse_challenges
from p2pdist.upstream.loans import Loans
from p2pdist.upstream.settings import UpstreamSettings
from p2pdist.upstream.transport import Transport, discard, read_small

ATTEMPTS = 3  # of each request, while its failure is temporary
_PASSED_ON = ("Link", "OCI-Filters-Applied")
_QUERY = re.compile(r"[A-Za-z0-9&=%._~+/:-]{0,2048}")

T = TypeVar("T")


class Registry:
    """Asks one registry. Made by `Upstreams.registry`.

    Every method takes `authorization`, a client's own `Authorization` value: it is sent instead of the agent's
    credentials, and what the registry then refuses stays refused. `patience` is how many seconds in all a call may
    wait when the registry says 429, or 503 with Retry-After; with 0 that is raised at once as UpstreamThrottled.
    Temporary failures are tried `ATTEMPTS` times, with jittered pauses.

    All methods raise UpstreamNotFound (404), UpstreamDenied (401, 403), UpstreamThrottled, UpstreamUnreachable,
    UpstreamInvalid (what came can't be right) or UpstreamError (5xx).
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        transport: Transport,
        authenticator: Authenticator,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.name = settings.name
        self._base = settings.url.rstrip("/")
        self._stall = settings.stall_timeout
        self._transport = transport
        self._authenticator = authenticator
        self._loans = Loans(clock)
        self._clock = clock
        self._wall = wall

    async def reach(self) -> int:
        """The status that the registry's `/v2/` is answered with, asked once without credentials (end-1).

        Raises UpstreamUnreachable, or UpstreamInvalid for what isn't HTTP.
        """
        response = await self._transport.send("GET", URL(f"{self._base}/v2/"), {})
        await discard(response)
        return response.status

    async def head_manifest(
        self, repository: Repository, target: str, *, authorization: str | None = None, patience: float = 0.0
    ) -> ManifestInfo:
        """What a tag or digest names now, by HEAD; by GET where the registry doesn't answer HEAD."""
        path = f"manifests/{target}"
        try:
            response = await self._ask("HEAD", repository, path, _ACCEPT, authorization, patience)
        except UpstreamInvalid as error:
            if error.status not in (405, 501):
                raise
            fetched = await self.get_manifest(repository, target, authorization=authorization, patience=patience)
            return ManifestInfo(fetched.digest, fetched.media_type, len(fetched.raw))
        response.release()
        digest = _digest(target) or _digest(response.headers.get("Docker-Content-Digest", ""))
        return ManifestInfo(digest, _media_type(response), response.content_length)

    async def get_manifest(
        self, repository: Repository, target: str, *, authorization: str | None = None, patience: float = 0.0
    ) -> FetchedManifest:
        """The manifest that a tag or digest names: at most 4 MiB, the bytes as they came.

        Raises:
            UpstreamInvalid: also when `target` is a digest and the bytes have another one.
        """
        wanted = _digest(target)

        async def once() -> FetchedManifest:
            response = await self._send("GET", repository, f"manifests/{target}", _ACCEPT, authorization)
            raw = await read_small(response, MAX_MANIFEST)
            digest = Digest.of(raw, wanted.algorithm if wanted is not None else "sha256")
            if wanted is not None and digest != wanted:
                raise UpstreamInvalid(f"{repository}: wanted the manifest {wanted}, got {digest} ({len(raw)} bytes)")
            return FetchedManifest(raw, _media_type(response), digest)

        return await _retried(once, patience)

    async def head_blob(
        self, repository: Repository, digest: Digest, *, authorization: str | None = None, patience: float = 0.0
    ) -> int | None:
        """The size of a blob in bytes; None if the registry doesn't say."""
        path = f"blobs/{digest}"

        async def once() -> tuple[bool, int | None]:
            try:
                response = await self._send("HEAD", repository, path, {}, authorization)
            except UpstreamDenied:
                raise
            except UpstreamError as error:
                # A URL signed for GET, or a registry without HEAD: a GET of one byte says it as well.
                if error.status in (403, 405, 501):
                    return False, None
                raise
            response.release()
            return True, response.content_length

        answered, size = await _retried(once, patience)
        if answered:
            return size
        asked = self.read_blob(repository, digest, end=1, authorization=authorization, patience=patience)
        async with asked as body:
            return body.total

    @asynccontextmanager
    async def read_blob(
        self,
        repository: Repository,
        digest: Digest,
        *,
        start: int = 0,
        end: int | None = None,
        size: int | None = None,
        authorization: str | None = None,
        patience: float = 0.0,
    ) -> AsyncIterator[BlobBody]:
        """The bytes of a blob from `start` to before `end` (None: its end); the answer's head is checked on entry.

        `size` is the blob's, where a manifest says it: a registry that announces another one is refused. Without it
        (and without `end`) the registry must announce one. Nothing is hashed here.
        """

        async def open_(at: int, until: int | None) -> aiohttp.ClientResponse:
            headers = {}
            if at > 0 or (until is not None and until != size):
                headers["Range"] = f"bytes={at}-{'' if until is None else until - 1}"
            path = f"blobs/{digest}"
            header = authorization or self._loans.instead(repository.name)
            try:
                return await self._ask("GET", repository, path, headers, header, patience, large=True)
            except UpstreamDenied:
                lent = self._loans.after_refusal(repository.name, header)
                if lent is None or authorization is not None:
                    raise
            return await self._ask("GET", repository, path, headers, lent, patience, large=True)

        body = BlobBody(f"{repository}@{digest}", start, end, size, open_, self._stall, self._clock)
        await body.open()
        try:
            yield body
        finally:
            body.close()

    def lend(self, repository: Repository, authorization: str) -> None:
        """A client whose `authorization` the registry takes waits for a blob of `repository`.

        Blobs are read with it where this node's own credentials are refused, for as long as it works; kept in memory.
        """
        self._loans.lend(repository.name, authorization)

    async def referrers(
        self,
        repository: Repository,
        digest: Digest,
        artifact_type: str | None,
        *,
        query: str = "",
        authorization: str | None = None,
        patience: float = 0.0,
    ) -> RawAnswer:
        """What refers to `digest` (distribution-spec, "Listing Referrers"): one page; `Link` is in the headers.

        UpstreamNotFound: this registry has no such API. `query` goes on where a `Link` pointed.
        """
        if artifact_type is not None:
            query = f"{query}{'&' if query else ''}artifactType={quote(artifact_type, safe='')}"
        return await self._list(repository, f"referrers/{digest}", query, authorization, patience)

    async def tags_list(
        self, repository: Repository, query: str = "", *, authorization: str | None = None, patience: float = 0.0
    ) -> RawAnswer:
        """One page of tags; `query` is an encoded query string (`n=..&last=..`); `Link` is in the headers."""
        return await self._list(repository, "tags/list", query, authorization, patience)

    async def _list(
        self, repository: Repository, path: str, query: str, authorization: str | None, patience: float
    ) -> RawAnswer:
        if _QUERY.fullmatch(query) is None:
            raise UpstreamInvalid(f"{repository}: a query string that is not passed on")
        path = f"{path}?{query}" if query else path

        async def once() -> RawAnswer:
            response = await self._send("GET", repository, path, {}, authorization)
            body = await read_small(response, MAX_MANIFEST)
            headers = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
            return RawAnswer(response.status, _media_type(response), body, headers)

        return await _retried(once, patience)

    # --- one request ---

    async def _ask(
        self,
        method: str,
        repository: Repository,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
        patience: float,
        *,
        large: bool = False,
    ) -> aiohttp.ClientResponse:
        async def once() -> aiohttp.ClientResponse:
            return await self._send(method, repository, path, headers, authorization, large=large)

        return await _retried(once, patience)

    async def _send(
        self,
        method: str,
        repository: Repository,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
        *,
        large: bool = False,
    ) -> aiohttp.ClientResponse:
        """One request with what authorization it takes; a 200 or 206 is returned, everything else raised."""
        url = URL(f"{self._base}/v2/{repository.name}/{path}", encoded=True)
        scope = f"repository:{repository.name}:pull"
        if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
            raise UpstreamDenied(f"{self.name}: an Authorization that can't be passed on", status=401)
        challenges: list[Challenge] = []
        try:
            header = authorization if authorization is not None else await self._authenticator.current(scope)
            response = await self._transport.send(method, url, _with(headers, header), large=large)
            elsewhere = response.url.origin() != url.origin()
            if response.status == 401 and not elsewhere:
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                if authorization is None:
                    await discard(response)
                    header = await self._authenticator.answer(scope, challenges, header)
                    response = await self._transport.send(method, url, _with(headers, header), large=large)
                    elsewhere = response.url.origin() != url.origin()
                    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ())) or challenges
            if response.status == 200 or (response.status == 206 and "Range" in headers):
                return response
            what = f"{self.name}: {method} {repository.name}/{path.partition('?')[0]}"
            raise await error_of(response, what, self._wall(), elsewhere=elsewhere)
        except UpstreamDenied as error:
            if error.status == 401 or authorization is None:
                error.challenge = self._authenticator.passed_on(scope, challenges)
            raise


_ACCEPT = {"Accept": ACCEPT_MANIFESTS}


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return headers if authorization is None else {**headers, "Authorization": authorization}


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except InvalidDigest:
        return None


def _media_type(response: aiohttp.ClientResponse) -> str:
    return normalised(response.headers.get("Content-Type", ""))


async def _retried(once: Callable[[], Awaitable[T]], patience: float) -> T:
    """`once`, again while it fails temporarily. All requests here are GET or HEAD, hence idempotent."""
    left = patience

    def again(error: Exception) -> bool | float:
        nonlocal left
        if isinstance(error, UpstreamThrottled):
            wait = error.retry_after if error.retry_after is not None else 1.0
            if wait > left:
                return False
            left -= wait
            return max(wait, 0.1)
        return isinstance(error, UpstreamError) and error.temporary

    async for attempt in stamina.retry_context(on=again, attempts=ATTEMPTS, timeout=None, wait_jitter=0.5):
        with attempt:
            return await once()
    raise AssertionError("unreachable: the last attempt returns or raises")
