"""HTTP to registries and to where they redirect, with aiohttp's errors translated and every URL in them redacted.

Rules:
1. `Authorization` goes to the scheme, host and port it was meant for, and nowhere else: a redirect to another origin
   drops it for the rest of the chain, also when the chain comes back.
2. Bodies are never decoded: `Accept-Encoding: identity` is asked, and `Content-Encoding` is ignored.
3. No query string, user or password of a URL gets into an error's text: object storage signs in them.
4. Each hop goes through the proxy that is meant for it, or none; what the proxy is told goes to nobody else.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from p2pdist import __version__
from p2pdist.errors import UpstreamError, UpstreamInvalid, UpstreamUnreachable
from p2pdist.proxies import Proxy
from p2pdist.upstream.settings import UpstreamSettings

MAX_REDIRECTS = 5
SMALL_CONNECTIONS = 4  # for manifests and tokens, which must not wait behind a rollout's blobs

_REDIRECTS = {301, 302, 303, 307, 308}
_WANTS_LOGIN = "the proxy wants another user and password than it was given, or one at all (407)"
_DISCARDED = 16 * 1024  # a body up to this is read to keep its connection


class Stalled(UpstreamUnreachable):
    """No bytes for as long as `stall_timeout`."""


class _Connector(aiohttp.TCPConnector):
    """aiohttp waits for a proxy's answer to CONNECT for as long as the whole request may take: for blobs, for ever."""

    def __init__(self, limit: int, patience: float) -> None:
        super().__init__(limit=limit)
        self._patience = patience  # seconds

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        if req.proxy is None:
            return await super()._create_connection(req, traces, timeout)
        try:
            async with asyncio.timeout(self._patience):
                return await super()._create_connection(req, traces, timeout)
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError from None


class Transport:
    """Connections to one registry (or to all that follow from `allow_any`). `start` and `stop` pair."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._small: aiohttp.ClientSession | None = None
        self._large: aiohttp.ClientSession | None = None
        self._own_tls: ssl.SSLContext | bool = True
        self._other_tls: ssl.SSLContext | bool = True
        self._own = URL(settings.url).origin()

    async def start(self) -> None:
        """Open the pools. UpstreamError if the CA file can't be used."""
        if self._settings.ca_file is not None:
            self._own_tls, self._other_tls = await asyncio.to_thread(_tls, self._settings.ca_file)
        self._small = self._session(SMALL_CONNECTIONS)
        self._large = self._session(self._settings.max_connections)

    async def stop(self) -> None:
        """Close all connections."""
        for session in (self._small, self._large):
            if session is not None:
                await session.close()
        self._small = self._large = None

    def _session(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(connections, self._settings.connect_timeout + self._settings.stall_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": f"p2pdist/{__version__}", "Accept-Encoding": "identity"},
        )

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        large: bool = False,
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request, follow redirects by rule 1, and return the answer with its body unread.

        The caller closes or releases it. A small answer must be complete in twice the stall timeout; a `large` one
        is only bounded between two reads.

        Raises:
            UpstreamUnreachable: no connection, or no answer in time (then `Stalled`).
            UpstreamInvalid: what came isn't HTTP, or redirects without end or to nowhere.
        """
        session = self._large if large else self._small
        assert session is not None, "Transport.start comes first"
        sending = dict(headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._once(session, method, url, sending, large, form)
            if form is not None or response.status not in _REDIRECTS:
                return response
            target = _redirect_target(response, url)
            await discard(response)
            if target.origin() != url.origin():
                sending = {name: value for name, value in sending.items() if name.lower() != "authorization"}
            url = target
        raise UpstreamInvalid(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")

    async def _once(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        large: bool,
        form: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        stall = self._settings.stall_timeout
        timeout = aiohttp.ClientTimeout(
            total=None if large else 2 * stall + self._settings.connect_timeout,
            sock_connect=self._settings.connect_timeout,
            sock_read=stall,
        )
        proxy = self._settings.proxies.choose(url)
        with translated(url, proxy):
            response = await session.request(
                method,
                url,
                data=form,
                allow_redirects=False,
                timeout=timeout,
                ssl=self._own_tls if url.origin() == self._own else self._other_tls,
                **({"headers": headers} if proxy is None else proxy.options(url, headers)),
            )
        if proxy is not None and response.status == 407:
            await discard(response)
            raise UpstreamUnreachable(f"{_shown_way(url, proxy)}: {_WANTS_LOGIN}")
        return response


async def read_small(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it, and the connection given back.

    Raises:
        UpstreamInvalid: the body is longer.
        UpstreamUnreachable: it stalled or was cut.
    """
    try:
        announced = response.content_length
        if announced is not None and announced > limit and response.method != "HEAD":
            raise UpstreamInvalid(f"{shown(response.url)}: {announced} bytes announced; at most {limit} are taken")
        pieces = []
        size = 0
        with translated(response.url):
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > limit:
                    raise UpstreamInvalid(
                        f"{shown(response.url)}: a body of more than the {limit} bytes that are taken"
                    )
                pieces.append(piece)
        return b"".join(pieces)
    finally:
        response.close() if not response.content.at_eof() else response.release()


async def read_some(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The first `limit` bytes of a body that only explains an error; whatever can be had of them."""
    data = b""
    try:
        with translated(response.url):
            while len(data) < limit and (piece := await response.content.readany()):
                data += piece
    except UpstreamError:
        return data[:limit]
    finally:
        response.close() if not response.content.at_eof() else response.release()
    return data[:limit]


async def discard(response: aiohttp.ClientResponse) -> None:
    """Done with an answer whose body says nothing; keeps the connection where that is cheap."""
    await read_some(response, _DISCARDED)


@contextmanager
def translated(url: URL, proxy: Proxy | None = None) -> Iterator[None]:
    """Turns aiohttp's errors into ours. The causes are cut off: their texts hold whole URLs."""
    where = _shown_way(url, proxy)
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise UpstreamUnreachable(f"{where}: no connection in time") from None
    except TimeoutError:
        raise Stalled(f"{where}: no answer, or no more of it, in time") from None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        hint = "; is it signed by a private authority? then set ca_file"
        raise UpstreamUnreachable(f"{where}: its certificate or TLS is refused: {_os_text(error)}{hint}") from None
    except aiohttp.ClientProxyConnectionError as error:
        raise UpstreamUnreachable(f"{where}: no connection to the proxy: {_os_text(error)}") from None
    except aiohttp.ClientConnectorError as error:
        raise UpstreamUnreachable(f"{where}: no connection: {_os_text(error)}") from None
    except aiohttp.ClientHttpProxyError as error:
        said = _WANTS_LOGIN if error.status == 407 else f"the proxy opens no connection there ({error.status})"
        raise UpstreamUnreachable(f"{where}: {said}") from None
    except aiohttp.ClientPayloadError:
        raise UpstreamUnreachable(f"{where}: the body was cut off") from None
    except aiohttp.ServerDisconnectedError:
        raise UpstreamUnreachable(f"{where}: the connection was closed without an answer") from None
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL, HttpProcessingError, ValueError) as error:
        raise UpstreamInvalid(f"{where}: what came is not HTTP ({type(error).__name__})") from None
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnreachable(f"{where}: the connection broke ({type(error).__name__})") from None


def shown(url: URL) -> str:
    """`url` for an error's text: without query, user and password, and short."""
    text = str(url.with_query(None).with_fragment(None).with_user(None))
    return text if len(text) <= 300 else text[:300] + "..."


def _shown_way(url: URL, proxy: Proxy | None) -> str:
    return shown(url) if proxy is None else f"{shown(url)} through the proxy {proxy}"


def _redirect_target(response: aiohttp.ClientResponse, url: URL) -> URL:
    location = response.headers.get("Location", "")
    try:
        # Encoded already: to decode and encode it again would break the signature in its query.
        target = url.join(URL(location, encoded=True))
        if target.scheme in ("http", "https") and target.host and target.user is None and target.password is None:
            return target
    except ValueError:
        pass
    response.close()
    raise UpstreamInvalid(f"{shown(url)}: redirects ({response.status}) to something that is not an http(s) URL")


def _os_text(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    if cause.errno is not None and cause.errno > 0 and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno)  # asyncio's own text says which call failed, not why
    return (cause.strerror or str(cause) or type(cause).__name__)[:200]


def _tls(ca_file: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the registry: this file alone. For where it redirects to: the system's authorities, and this file."""
    try:
        own = ssl.create_default_context(cafile=str(ca_file))
        other = ssl.create_default_context()
        other.load_verify_locations(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise UpstreamError(f"the CA file {ca_file} can't be used: {error.strerror or error}") from error
    return own, other
