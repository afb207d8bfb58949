"""Nodes that a Kubernetes cluster vouches for: a projected service account token in place of a join token.

The tracker believes no token by itself. It asks the cluster's API server (authentication.k8s.io/v1 TokenReview) whether
the token holds now and was made for us, and lets in the configured service accounts only. The node's name is taken from
what the API server says of the pod that the token was made for, never from what the asker says.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
import structlog

from p2pdist.errors import ConfigError, OperationError, PolicyError
from tracker.rules import option

log = structlog.get_logger()

NODE_LABEL = "node"
MAX_TOKEN = 16 * 1024  # bytes
_MAX_ANSWER = 256 * 1024  # bytes
_ACCOUNT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NODE_NAME = "authentication.kubernetes.io/node-name"
_OURS = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """Which service accounts may enrol nodes, and where to ask about their tokens."""

    service_accounts: str = option(
        "",
        "NAMESPACE/NAME of the service accounts whose projected tokens let a node in, separated by commas; empty: none",
    )
    audience: str = option("p2pdist", "what those tokens must have been made for")
    api: str = option("https://kubernetes.default.svc", "the API server that is asked about them")
    ca_file: str = option(f"{_OURS}/ca.crt", "PEM file of the authority that signed its certificate")
    token_file: str = option(f"{_OURS}/token", "file with this tracker's own token for it; read at each question")
    timeout: float = option(10.0, "seconds for a question", least=0.1, most=60)


class TokenRefused(PolicyError):
    """The API server doesn't vouch for the token, or not for us, or for an account that isn't let in."""


class ReviewUnavailable(OperationError):
    """The API server can't be asked now: the token may be good."""


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] = {}


class _Status(msgspec.Struct):
    authenticated: bool = False
    user: _User | None = None
    audiences: list[str] = []
    error: str = ""


class _Review(msgspec.Struct):
    status: _Status | None = None


class ServiceAccounts:
    """Reviews tokens. An asynchronous context manager; connects at the first question.

    Raises (when made): ConfigError.
    """

    def __init__(self, settings: KubernetesSettings) -> None:
        names = [name.strip() for name in settings.service_accounts.split(",") if name.strip()]
        for name in names:
            if not _ACCOUNT.fullmatch(name):
                raise ConfigError(f"kubernetes.service_accounts: wanted NAMESPACE/NAME, got {name!r}")
        if names and not settings.api.startswith("https://"):
            raise ConfigError(f"kubernetes.api: wanted https://, got {settings.api!r}: tokens are sent there")
        if names and not settings.audience:
            raise ConfigError("kubernetes.audience: wanted a name; a token for anybody would be one for us")
        self._accounts = {f"system:serviceaccount:{name.replace('/', ':', 1)}" for name in names}
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    @property
    def enabled(self) -> bool:
        """Whether any account is let in."""
        return bool(self._accounts)

    async def __aenter__(self) -> Self:
        if self.enabled:
            try:
                context = ssl.create_default_context(cafile=self._settings.ca_file)
            except OSError as error:
                raise ConfigError(f"kubernetes.ca_file: {self._settings.ca_file}: {error}") from error
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=16),
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def labels(self, token: str) -> Mapping[str, str]:
        """The labels of the node that the token lets in.

        Raises:
            TokenRefused: it lets nobody in; the text is for the asker and has nothing of the token.
            ReviewUnavailable: nobody can say now.
        """
        if self._session is None:
            raise TokenRefused("this tracker takes no service account tokens (kubernetes.service_accounts)")
        if not token or len(token) > MAX_TOKEN or not token.isascii():
            raise TokenRefused("not a service account token")
        status = await self._review(self._session, token)
        if not status.authenticated or status.user is None:
            log.info("service account token refused", reason=status.error[:300])
            raise TokenRefused("the cluster's API server does not accept the service account token")
        # An API server that knows nothing of audiences names none: then the token was made for anybody.
        if self._settings.audience not in status.audiences:
            raise TokenRefused(f"the service account token is not for the audience {self._settings.audience!r}")
        if status.user.username not in self._accounts:
            raise TokenRefused(f"{status.user.username} may not enrol nodes (kubernetes.service_accounts)")
        node = status.user.extra.get(_NODE_NAME, [])
        return {NODE_LABEL: node[0]} if len(node) == 1 and len(node[0]) <= 253 else {}

    async def _review(self, session: aiohttp.ClientSession, token: str) -> _Status:
        settings = self._settings
        url = f"{settings.api.rstrip('/')}/apis/authentication.k8s.io/v1/tokenreviews"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [settings.audience]},
        }
        try:
            own = await asyncio.to_thread(Path(settings.token_file).read_text, "ascii")
            headers = {"Authorization": f"Bearer {own.strip()}"}
            async with session.post(url, json=body, headers=headers, allow_redirects=False) as answer:
                if answer.status not in {200, 201}:
                    raise ReviewUnavailable(f"the API server answered {answer.status} to a TokenReview")
                raw = bytearray()
                async for piece in answer.content.iter_chunked(16 * 1024):
                    raw += piece
                    if len(raw) > _MAX_ANSWER:
                        raise ReviewUnavailable(f"the API server's answer is over {_MAX_ANSWER} bytes")
            status = msgspec.json.decode(raw, type=_Review).status
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError) as error:
            raise ReviewUnavailable(f"the API server can't be asked: {error or type(error).__name__}") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise ReviewUnavailable(f"the API server's answer is no TokenReview: {error}") from error
        if status is None:
            raise ReviewUnavailable("the API server's answer has no status")
        return status
