"""A SignatureSource on the agent's own registry clients, and on GPG signature stores by file or HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

import aiohttp
from yarl import URL

from p2pdist.errors import ConfigError, UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import Digest, Repository
from p2pdist.proxies import DIRECT, Proxies
from p2pdist.trust.source import ReferrersPage
from p2pdist.upstream import RawAnswer, Registry

_NEXT = re.compile(r'<([^<>"]{1,4096})>\s*;[^,]*\brel="?next"?(?:[\s;,]|$)')


class Registries(Protocol):
    """Finds a registry's client by its name; UpstreamNotAllowed."""

    def registry(self, name: str) -> Registry:
        """The client of one registry."""
        ...


class UpstreamSource:
    """Asks the registry itself. `session`: for GPG stores by HTTP, through `proxies`; the caller closes it."""

    def __init__(
        self,
        registries: Registries,
        session: aiohttp.ClientSession | None = None,
        authorization: str | None = None,
        *,
        proxies: Proxies = DIRECT,
    ) -> None:
        self._registries = registries
        self._session = session
        self._proxies = proxies
        self._authorization = authorization

    def on_behalf_of(self, authorization: str) -> UpstreamSource:
        """See SignatureSource."""
        return UpstreamSource(self._registries, self._session, authorization, proxies=self._proxies)

    async def manifest(self, repository: Repository, target: str, limit: int) -> bytes | None:
        """See SignatureSource."""
        registry = self._registries.registry(repository.registry)
        try:
            fetched = await registry.get_manifest(repository, target, authorization=self._authorization)
        except UpstreamNotFound:
            return None
        if len(fetched.raw) > limit:
            raise UpstreamInvalid(f"{repository}: {target} has {len(fetched.raw)} bytes; at most {limit} are read")
        return fetched.raw

    async def blob(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See SignatureSource."""
        registry = self._registries.registry(repository.registry)
        data = bytearray()
        async with registry.read_blob(
            repository, digest, size=size, end=size, authorization=self._authorization
        ) as body:
            async for piece in body:
                data += piece
        return bytes(data)

    async def referrers(
        self, repository: Repository, digest: Digest, page: str | None, limit: int
    ) -> ReferrersPage | None:
        """See SignatureSource."""
        registry = self._registries.registry(repository.registry)
        try:
            answer = await registry.referrers(
                repository, digest, None, query=page or "", authorization=self._authorization
            )
        except UpstreamNotFound:
            return None
        return page_of(answer, repository, limit)

    async def lookaside(self, base: str, path: str, limit: int) -> bytes | None:
        """See SignatureSource."""
        if urlsplit(base).scheme == "file":
            return await asyncio.to_thread(_read_file, Path(unquote(urlsplit(base).path)) / path, limit)
        if self._session is None:
            raise UpstreamError(f"{base}: there is no client for it")
        # The names in a store hold @ and =, which stay as they are.
        url = URL(f"{base.rstrip('/')}/{quote(path, safe='/@=')}", encoded=True)
        proxy = self._proxies.choose(url)
        through = {} if proxy is None else proxy.options(url, {})
        try:
            async with self._session.get(url, allow_redirects=False, **through) as response:
                if response.status == 404:
                    return None
                if response.status != 200:
                    raise UpstreamError(f"{base}: {response.status}", status=response.status)
                return await _whole(response, limit)
        except (aiohttp.ClientError, TimeoutError) as error:
            by = "" if proxy is None else f", through the proxy {proxy}"
            raise UpstreamUnreachable(f"{base}{by}: {type(error).__name__}") from error


def page_of(answer: RawAnswer, repository: Repository, limit: int) -> ReferrersPage:
    """A registry's answer as a page of referrers; UpstreamInvalid over `limit` bytes."""
    if len(answer.body) > limit:
        raise UpstreamInvalid(f"{repository}: a page of {len(answer.body)} bytes; at most {limit} are read")
    return ReferrersPage(answer.body, next_query(answer.headers.get("Link")))


def check_store_url(text: str) -> str:
    """The base URL of a GPG signature store if it can be used; ConfigError."""
    parts = urlsplit(text)
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"signature store {text!r}: no query, fragment or user")
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return text
    if parts.scheme in ("http", "https") and parts.netloc:
        return text
    raise ConfigError(f"signature store {text!r} is neither file:///... nor http(s)://...")


def next_query(link: str | None) -> str | None:
    """The query string of a Link header's `next` (RFC 8288), where it stays at the same place; None: no more pages.

    Only the query is taken over: where a registry points elsewhere, it is not followed there.
    """
    found = _NEXT.search(link or "")
    return None if found is None else urlsplit(found[1]).query or None


def _read_file(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UpstreamUnreachable(f"{path}: {error.strerror}") from error
    return _within(data, limit)


async def _whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    if response.content_length is not None and response.content_length > limit:
        raise UpstreamInvalid(f"a signature of {response.content_length} bytes; at most {limit} are read")
    data = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        data += piece
        if len(data) > limit:
            break
    return _within(bytes(data), limit)


def _within(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise UpstreamInvalid(f"a signature of more than {limit} bytes")
    return data
