"""Where an export takes an image from: a running agent's mirror, which fetches what it lacks, or a store at rest."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate

from p2pdist.config import logins_in, password_text
from p2pdist.errors import (
    ConfigError,
    StorageError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamUnreachable,
)
from p2pdist.oci import ACCEPT_MANIFESTS, Digest, Repository
from p2pdist.protocol.limits import MAX_MANIFEST
from p2pdist.store import Store

_PIECE = 1024 * 1024
_SILENT = 330.0  # seconds without a byte: the mirror may wait for the cluster so long


class StoreSource:
    """What a store holds."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def manifest(self, repository: Repository, target: str) -> tuple[bytes, str]:
        """See `export.ImageSource`. UpstreamNotFound: it was never pulled here."""
        known = self._store.tag(str(repository), target) if ":" not in target else (target, 0.0)
        digest = Digest.parse(known[0]) if known is not None else None
        media_type = self._store.media_type(digest) if digest is not None else None
        if digest is None or media_type is None:
            raise UpstreamNotFound(
                f"{repository} {target} is not in the store; start the agent to fetch it", status=404
            )
        data = bytearray()
        async for piece in self.blob(repository, digest):
            data += piece
        return bytes(data), media_type

    async def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[bytes]:
        """See `export.ImageSource`."""
        blob = await self._store.open_blob(digest)
        if blob is None:
            raise StorageError(f"{digest} is not in the store; start the agent to fetch what is missing")
        with blob:
            offset = 0
            while offset < blob.size:
                data = blob.pread(offset, _PIECE)
                offset += len(data)
                yield data


class MirrorSource:
    """A running agent's mirror at `url`; an asynchronous context manager.

    `certificate`: the PEM file of what the mirror shows, if it has TLS. Whoever signed it and whatever name it is for,
    it must be that one: we go by address. `own`: the PEM files of a client certificate and its key, if the mirror wants
    one. `passwords`: the mirror's password file. Raises (when made): ConfigError, if a file can't be used.
    """

    def __init__(
        self,
        url: str,
        certificate: Path | None = None,
        *,
        own: tuple[Path, Path] | None = None,
        passwords: Path | None = None,
    ) -> None:
        self._url = url
        self._pin = _pinned(certificate) if certificate is not None else True
        self._tls = _context(own) if certificate is not None else True
        self._login = {"Authorization": f"Basic {_first_login(passwords)}"} if passwords is not None else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> MirrorSource:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=_SILENT)
        connector = aiohttp.TCPConnector(ssl=self._pin)
        self._session = aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, connector=connector, headers=self._login
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def answers(self) -> bool:
        """Whether an agent is there."""
        try:
            async with self._get("/v2/") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def manifest(self, repository: Repository, target: str) -> tuple[bytes, str]:
        """See `export.ImageSource`."""
        try:
            async with self._get(f"/v2/{repository.name}/manifests/{target}", repository) as answer:
                await _check(answer, f"{repository} {target}")
                data = await answer.content.read(MAX_MANIFEST + 1)
                while not answer.content.at_eof() and len(data) <= MAX_MANIFEST:
                    data += await answer.content.read(MAX_MANIFEST + 1 - len(data))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamUnreachable(f"the agent's mirror: {error}") from error
        if len(data) > MAX_MANIFEST:
            raise UpstreamInvalid(f"{repository} {target}: a manifest of over {MAX_MANIFEST} bytes")
        return data, answer.content_type

    async def blob(self, repository: Repository, digest: Digest) -> AsyncIterator[bytes]:
        """See `export.ImageSource`."""
        try:
            async with self._get(f"/v2/{repository.name}/blobs/{digest}", repository) as answer:
                await _check(answer, str(digest))
                async for piece in answer.content.iter_chunked(_PIECE):
                    yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamUnreachable(f"the agent's mirror: {error or type(error).__name__}") from error

    def _get(self, path: str, repository: Repository | None = None) -> aiohttp.client._RequestContextManager:
        assert self._session is not None
        query = {"ns": repository.registry} if repository is not None else {}
        headers = {"Accept": ACCEPT_MANIFESTS} if "/manifests/" in path else {}
        return self._session.get(f"{self._url}{path}", params=query, headers=headers, ssl=self._tls)


def _context(own: tuple[Path, Path] | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the connector's pin decides
    if own is not None:
        try:
            context.load_cert_chain(*own)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{own[0]} and {own[1]} are no certificate with its key: {error}") from error
    return context


def _first_login(passwords: Path) -> str:
    return base64.b64encode(logins_in(password_text(passwords))[0].encode()).decode()


def _pinned(certificate: Path) -> aiohttp.Fingerprint:
    try:
        shown = load_pem_x509_certificate(certificate.read_bytes())  # the first one is the mirror's own
    except (OSError, ValueError) as error:
        raise ConfigError(f"mirror.tls_certificate: {certificate} can't be used: {error}") from error
    return aiohttp.Fingerprint(shown.fingerprint(SHA256()))


async def _check(answer: aiohttp.ClientResponse, what: str) -> None:
    if answer.status == 200:
        return
    body = (await answer.content.read(2048)).decode(errors="replace")
    text = f"{what}: the agent answers {answer.status}: {body}"
    raise UpstreamNotFound(text, status=404) if answer.status == 404 else UpstreamError(text, status=answer.status)
