"""Pulls one image from a mirror as a daemon does, and proves every digest from the outside: nothing the agents said."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp

from p2pdist.errors import OperationError
from p2pdist.oci import ACCEPT_MANIFESTS, Digest

_AT_ONCE = 3  # layers: dockerd's max-concurrent-downloads, containerd's default
_STALL_SECONDS = 60.0
_MAX_REASON = 500
_MAX_MANIFEST = 4 * 1024 * 1024


class PullError(OperationError):
    """The mirror did not give what a daemon would have needed."""


@dataclass(slots=True)
class Pull:
    """One daemon's pull through the mirror at `mirror` (http://host:port). Sizes in bytes, times in seconds.

    `proved` are the digests that what was received really has; `seconds` is None until the whole image is here.
    """

    mirror: str
    repository: str
    tag: str
    registry: str  # `?ns=`
    received: int = 0
    proved: set[Digest] = field(default_factory=set)
    seconds: float | None = None
    error: str = ""

    async def run(self, start: asyncio.Event) -> None:
        """Connect, wait for `start`, pull. What goes wrong is in `error`; only cancellation comes out."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_STALL_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
                await self._get(session, "/v2/", _MAX_MANIFEST)
                await start.wait()
                begun = time.monotonic()
                await self._image(session)
                self.seconds = time.monotonic() - begun
        except* (aiohttp.ClientError, TimeoutError, OSError, PullError) as group:
            self.error = "; ".join(_reasons(group))

    async def _image(self, session: aiohttp.ClientSession) -> None:
        raw = await self._get(session, self._path("manifests", self.tag), _MAX_MANIFEST)
        self.received += len(raw)
        self.proved.add(Digest.of(raw))
        try:
            manifest = json.loads(raw)
            config, *layers = [
                (Digest.parse(item["digest"]), int(item["size"])) for item in (manifest["config"], *manifest["layers"])
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise PullError(f"what came for {self.tag} is no image manifest: {error}") from error
        await self._blob(session, *config)
        places = asyncio.Semaphore(_AT_ONCE)

        async def layer(digest: Digest, size: int) -> None:
            async with places:
                await self._blob(session, digest, size)

        async with asyncio.TaskGroup() as group:
            for digest, size in layers:
                group.create_task(layer(digest, size))

    async def _blob(self, session: aiohttp.ClientSession, digest: Digest, size: int) -> None:
        hasher = digest.hasher()
        got = 0
        async with session.get(self.mirror + self._path("blobs", str(digest))) as answer:
            await _expect_ok(answer)
            async for data in answer.content.iter_any():
                hasher.update(data)
                got += len(data)
                self.received += len(data)
                if got > size:
                    raise PullError(f"{digest}: more than the {size} bytes of the manifest")
        if got != size or hasher.hexdigest() != digest.hex:
            raise PullError(f"{digest}: {got} of {size} bytes came, with digest {hasher.hexdigest()}")
        self.proved.add(digest)

    async def _get(self, session: aiohttp.ClientSession, path: str, most: int) -> bytes:
        async with session.get(self.mirror + path, headers={"Accept": ACCEPT_MANIFESTS}) as answer:
            await _expect_ok(answer)
            body = bytearray()
            async for data in answer.content.iter_any():
                body += data
                if len(body) > most:
                    raise PullError(f"{path}: over {most} bytes")
            return bytes(body)

    def _path(self, kind: str, name: str) -> str:
        return f"/v2/{self.repository}/{kind}/{name}?ns={self.registry}"


async def _expect_ok(answer: aiohttp.ClientResponse) -> None:
    if answer.status != 200:
        said = (await answer.content.read(_MAX_REASON)).decode(errors="replace").strip()
        raise PullError(f"{answer.url.path}: the mirror answers {answer.status} {said}".rstrip())


def _reasons(error: BaseException) -> Iterable[str]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _reasons(inner)
    else:
        yield f"{type(error).__name__}: {error}" if not isinstance(error, PullError) else str(error)
