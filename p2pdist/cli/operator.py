"""What an operator's commands ask of a tracker: its HTTP API, with an operator's certificate."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from p2pdist.errors import ConfigError, InputError, TrackerError
from p2pdist.pki import Role, TlsCredentials, read_secret

ADMIN_VARIABLE = "P2PDIST_ADMIN_DIR"
_MAX_ANSWER = 64 * 1024 * 1024  # bytes
_TIMEOUT = aiohttp.ClientTimeout(total=30.0, connect=3.0)


class Operator:
    """An asynchronous context manager. Of several trackers any will do; they are asked in turn.

    Raises (when made):
        ConfigError: no tracker is named, or one wants a certificate and there is none that can be used.
    """

    def __init__(self, urls: Sequence[str], directory: Path | None) -> None:
        if not urls:
            raise ConfigError("which tracker? name one with --tracker, or in the configuration (tracker.urls)")
        self._urls = [url.rstrip("/") for url in urls]
        self._tls = _certificate(directory) if any(url.startswith("https:") for url in urls) else None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer. An order that was taken but whose answer is lost is not given to another tracker.

        Raises:
            InputError: the tracker says that the question is wrong.
            TrackerError: no tracker answers, or it refuses.
        """
        trouble = ""
        for url in self._urls:
            try:
                return await self._ask(method, url + path, body)
            except aiohttp.ClientConnectorError as error:
                trouble = f"{url}: {error}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if method == "POST":
                    raise TrackerError(
                        f"{url}: the answer is lost ({error or type(error).__name__}); `p2pdist preheat list` shows "
                        "whether the order was taken"
                    ) from error
                trouble = f"{url}: {error or type(error).__name__}"
        raise TrackerError(f"no tracker answers; the last one: {trouble}")

    async def _ask(self, method: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self._session is not None
        tls: dict[str, Any] = {}
        if self._tls is not None and url.startswith("https:"):
            tls = {"ssl": self._tls, "server_hostname": Role.TRACKER.host}
        async with self._session.request(method, url, json=body, **tls) as answer:
            raw = bytearray()
            async for piece in answer.content.iter_chunked(64 * 1024):
                raw += piece
                if len(raw) > _MAX_ANSWER:
                    raise TrackerError(f"{url}: the answer is over {_MAX_ANSWER} bytes")
            if answer.status < 300:
                try:
                    return msgspec.json.decode(raw, type=dict[str, Any])
                except msgspec.DecodeError as error:
                    raise TrackerError(f"{url}: what answers is no tracker: {error}") from error
            said = _said(bytes(raw)) or f"status {answer.status}"
            if answer.status == 400:
                raise InputError(said)
            raise TrackerError(said)


def _said(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw, type=dict[str, Any]).get("error", ""))
    except msgspec.DecodeError:
        return raw[:500].decode(errors="replace").strip()


def _certificate(directory: Path | None) -> ssl.SSLContext:
    if directory is None:
        raise ConfigError(
            "a tracker with certificates takes orders from operators only: `p2pdist-tracker admin create -o DIR` makes "
            f"a certificate; name its directory with --admin or {ADMIN_VARIABLE}"
        )
    authority, certificate, key = (read_secret(directory / name) for name in ("ca.crt", "tls.crt", "tls.key"))
    if authority is None or certificate is None or key is None:
        raise ConfigError(
            f"{directory}: wanted ca.crt, tls.crt and tls.key, as `p2pdist-tracker admin create` makes them"
        )
    credentials = TlsCredentials()
    try:
        private = load_pem_private_key(key, None)
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{directory}: tls.key is not an operator's")
        credentials.use(certificate, private, authority)
    except (ValueError, TypeError, ssl.SSLError) as error:
        raise ConfigError(f"{directory}: not an operator's certificate: {error}") from error
    return credentials.client
