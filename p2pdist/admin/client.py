"""Asks a running agent through its admin socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from p2pdist.errors import OperationError

_MAX_ANSWER = 16 * 1024 * 1024
T = TypeVar("T")


class AdminError(OperationError):
    """No agent answers on the admin socket, what answers is none, or it says that something did not work."""


class NoAgent(AdminError):
    """No agent answers on the admin socket."""


class AdminClient:
    """One agent's admin interface. An asynchronous context manager; connects at the first question."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        self._path = path
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AdminClient:
        connector = aiohttp.UnixConnector(path=str(self._path))
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> dict[str, Any]:
        """What `GET /status` says. Raises AdminError."""
        return self._decoded(await self._get("/status"), dict[str, Any])

    async def metrics(self) -> str:
        """What `GET /metrics` says: Prometheus text. Raises AdminError."""
        return (await self._get("/metrics")).decode(errors="replace")

    async def import_image(self, directory: Path, name: str | None) -> list[tuple[str, str]]:
        """Have the agent take the images of an OCI layout; their names and digests. Raises AdminError."""
        raw = await self._get("/import", {"directory": str(directory), "name": name})
        return self._decoded(raw, list[tuple[str, str]])

    async def kept(self) -> list[dict[str, Any]]:
        """What the agent never evicts. Raises AdminError."""
        return self._decoded(await self._get("/keep"), list[dict[str, Any]])

    async def keep(self, images: str, *, remove: bool = False) -> str:
        """Have it never evict these images, or no longer; they as written out. Raises AdminError."""
        return self._decoded(await self._get("/keep", {"images": images, "remove": remove}), str)

    def _decoded(self, raw: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except msgspec.DecodeError as error:
            raise AdminError(f"{self._path}: what answers is no p2pdist agent: {error}") from error

    async def _get(self, path: str, body_sent: Mapping[str, Any] | None = None) -> bytes:
        if self._session is None:
            raise AdminError("the client isn't open")
        method = "GET" if body_sent is None else "POST"
        try:
            async with self._session.request(method, f"http://agent{path}", json=body_sent) as answer:
                if answer.status != 200:
                    said = "" if body_sent is None else (await answer.content.read(4096)).decode(errors="replace")
                    raise AdminError(said or f"{self._path}: the agent answers {answer.status} to {path}")
                body = await answer.content.read(_MAX_ANSWER + 1)
                while body and not answer.content.at_eof() and len(body) <= _MAX_ANSWER:
                    body += await answer.content.read(_MAX_ANSWER + 1 - len(body))
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PermissionError):
                raise AdminError(f"{self._path}: not allowed; ask as the user that the agent runs as") from error
            raise NoAgent(
                f"no agent answers at {self._path}; start one with `p2pdist up`, or say where it is with --socket"
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AdminError(f"{self._path}: no answer from the agent: {error or type(error).__name__}") from error
        if len(body) > _MAX_ANSWER:
            raise AdminError(f"{self._path}: the answer to {path} has over {_MAX_ANSWER} bytes")
        return body
