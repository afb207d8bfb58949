"""The agent's own interface: HTTP on a Unix socket that nobody but its user can open.

    GET /status   what the agent is doing, as JSON
    GET /metrics  the same for Prometheus
    POST /import  {"directory": an OCI layout, "name": what the image is called or null}: takes its images
    GET /keep     what is never evicted
    POST /keep    {"images": an image or pattern, "remove": false}: keeps it, or no longer

There is no other access control: the socket's mode (0600) is it, and it holds from the moment the socket exists.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from p2pdist.errors import InputError, P2pdistError, StorageError
from p2pdist.oci import ImagePattern

Importer = Callable[[Path, "str | None"], Awaitable[Sequence[tuple[str, str]]]]


class _Import(msgspec.Struct):
    directory: str
    name: str | None = None


class _Keep(msgspec.Struct):
    images: str
    remove: bool = False


class Keeper(Protocol):
    """Decides what is never evicted."""

    async def add(self, text: str) -> object:
        """Keep these images. InputError, StorageError."""

    async def remove(self, text: str) -> bool:
        """Keep them no longer; False: they weren't on the list. InputError, StorageError."""

    def listed(self) -> list[dict[str, Any]]:
        """What is kept."""


class AdminServer:
    """Serves `status()` and `metrics` at `path` between `__aenter__` and `__aexit__`.

    A socket file that nobody listens on (left by a killed agent) is replaced. Raises StorageError when another process
    answers on it or it can't be made.
    """

    def __init__(
        self,
        path: Path,
        status: Callable[[], Mapping[str, Any]],
        metrics: CollectorRegistry,
        importer: Importer | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._path = path
        self._importer = importer
        self._keeper = keeper
        self._status = status
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/status", self._answer_status)
        app.router.add_get("/metrics", self._answer_metrics)
        if self._importer is not None:
            app.router.add_post("/import", self._answer_import)
        if self._keeper is not None:
            app.router.add_get("/keep", self._answer_kept)
            app.router.add_post("/keep", self._answer_keep)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            listener = _listen(self._path)
            try:
                await web.SockSite(runner, listener).start()
            except BaseException:
                listener.close()
                raise
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(self, *_: object) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
            with suppress(FileNotFoundError):
                self._path.unlink()

    async def _answer_status(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._status()), content_type="application/json")

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": content_type})

    async def _answer_import(self, request: web.Request) -> web.Response:
        assert self._importer is not None
        try:
            asked = msgspec.json.decode(await request.read(), type=_Import)
            images = await self._importer(Path(asked.directory), asked.name)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return web.Response(status=400, text=f"not a question that this agent knows: {error}")
        except P2pdistError as error:
            return web.Response(status=400 if isinstance(error, InputError) else 500, text=str(error))
        return web.Response(body=msgspec.json.encode(images), content_type="application/json")

    async def _answer_kept(self, _: web.Request) -> web.Response:
        assert self._keeper is not None
        return web.Response(body=msgspec.json.encode(self._keeper.listed()), content_type="application/json")

    async def _answer_keep(self, request: web.Request) -> web.Response:
        assert self._keeper is not None
        try:
            asked = msgspec.json.decode(await request.read(), type=_Keep)
            written = ImagePattern.parse(asked.images).text
            if not asked.remove:
                await self._keeper.add(asked.images)
            elif not await self._keeper.remove(asked.images):
                return web.Response(status=404, text=f"{written} is not kept by `p2pdist keep`")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return web.Response(status=400, text=f"not a question that this agent knows: {error}")
        except P2pdistError as error:
            return web.Response(status=400 if isinstance(error, InputError) else 500, text=str(error))
        return web.Response(body=msgspec.json.encode(written), content_type="application/json")


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            if _answers(path):
                raise StorageError(
                    f"{path}: another agent is running here; stop it, or give this one its own directory"
                )
            path.unlink()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file that bind makes this mode, so it is never wider
        listener.bind(str(path))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = "a file that is no socket is in the way" if error.errno == errno.EADDRINUSE else error.strerror
        raise StorageError(f"{path}: no admin socket here: {reason}") from error
    return listener


def _answers(path: Path) -> bool:
    """Whether a process listens on the socket file; a refused connection means that its owner is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except TimeoutError:
            return True  # it listens and its backlog is full
    return True
