"""A pull whose cluster and upstream do what the test says, over a real store and a real swarm service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.images import Image, make_image
from support.virtual import run_virtual
from swarm.swarm_script import REPOSITORY, ScriptedEngine, ScriptedRegistry, ScriptedTracker

from p2pdist.errors import TrackerError, UpstreamNotFound
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.pull import Pull, PullSettings
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.service import SwarmService, SwarmSettings

Answer = wire.Content | wire.Fetch | wire.Absent | TrackerError


class ScriptedCluster(ScriptedTracker):
    """Answers what is asked from `answers`, each in turn; the last of a key again and again."""

    def __init__(self, *, connected: bool) -> None:
        super().__init__(connected=connected)
        self.asked: list[str] = []
        self.answers: dict[str, list[Answer]] = {}

    async def ask(self, key: str, timeout: float) -> wire.Content | wire.Fetch | wire.Absent:
        self.asked.append(key)
        await asyncio.sleep(0.01)
        answers = self.answers.get(key, [wire.Fetch(1, key)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, TrackerError):
            raise answer
        return answer


@dataclass(frozen=True)
class Fetched:
    raw: bytes
    media_type: str
    digest: Digest


class ScriptedUpstream(ScriptedRegistry):
    """Manifests too; `down`: every call raises it."""

    def __init__(self) -> None:
        super().__init__()
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.asked: list[str] = []
        self.heads: list[tuple[str, str | None]] = []
        self.lent: list[str] = []
        self.absent: set[tuple[Repository, Digest]] = set()
        self.refuses: dict[tuple[Repository, str | None], Exception] = {}
        self.down: Exception | None = None
        self.slow = 0.05

    async def get_manifest(self, repository: Repository, target: str, **options: Any) -> Fetched:
        self.asked.append(target)
        await asyncio.sleep(self.slow)
        if self.down is not None:
            raise self.down
        refused = self.refuses.get((repository, options.get("authorization")))
        if refused is not None:
            raise refused
        if target not in self.manifests:
            raise UpstreamNotFound(f"no {target}", status=404)
        raw, media_type = self.manifests[target]
        return Fetched(raw, media_type, Digest.of(raw))

    async def head_manifest(self, repository: Repository, target: str, **options: Any) -> None:
        self.heads.append((target, options.get("authorization")))
        await asyncio.sleep(self.slow)
        if self.down is not None:
            raise self.down
        refused = self.refuses.get((repository, options.get("authorization")))
        if refused is not None:
            raise refused
        if target not in self.manifests:
            raise UpstreamNotFound(f"no {target}", status=404)

    def lend(self, repository: Repository, authorization: str) -> None:
        self.lent.append(authorization)

    async def head_blob(self, repository: Repository, digest: Digest, **options: Any) -> int:
        self.asked.append(str(digest))
        refused = self.refuses.get((repository, options.get("authorization")))
        if refused is not None:
            raise refused
        if (repository, digest) in self.absent or digest not in self.blobs:
            raise UpstreamNotFound(f"no {digest}", status=404)
        return len(self.blobs[digest])

    @asynccontextmanager
    async def read_blob(self, repository: Repository, digest: Digest, **options: Any) -> AsyncIterator[Any]:
        if self.down is not None:
            raise self.down
        async with super().read_blob(repository, digest, **options) as body:
            yield body


class OneUpstream:
    def __init__(self, registry: ScriptedUpstream) -> None:
        self._registry = registry
        self.without_credentials = False

    def registry(self, name: str) -> ScriptedUpstream:
        return self._registry

    async def anonymous(self, name: str) -> bool:
        return self.without_credentials


@dataclass
class Script:
    """What a test has in hand."""

    store: Store
    cluster: ScriptedCluster
    engine: ScriptedEngine
    registry: ScriptedUpstream
    swarms: SwarmService
    pull: Pull
    upstreams: OneUpstream
    now: float = 1_000_000.0

    def image(self, *layers: bytes) -> Image:
        """The upstream has it as tag `1`."""
        image = make_image(layers)
        self.registry.blobs.update(image.blobs)
        for target in ("1", str(image.digest)):
            self.registry.manifests[target] = (image.raw, image.media_type)
        return image

    def content(self, image: Image, *, data: bytes | None = None, stale: bool = False) -> wire.Content:
        raw = image.raw if data is None else data
        return wire.Content(1, "", str(image.digest), image.media_type, len(image.raw), raw, stale)


TAG = f"tag {REPOSITORY}:1"


def play(
    directory: Path,
    case: Callable[[Script], Coroutine[Any, Any, None]],
    *,
    connected: bool = True,
    settings: PullSettings | None = None,
) -> None:
    """Run `case` at injected time."""

    async def main() -> None:
        cluster, engine, registry = ScriptedCluster(connected=connected), ScriptedEngine(), ScriptedUpstream()
        store = await Store.open(directory / "store")
        upstreams: Any = OneUpstream(registry)
        attestor = Attestor(Ed25519PrivateKey.generate())
        swarms = SwarmService(store, upstreams.registry, engine, attestor, cluster, SwarmSettings())
        script: Script
        pull = Pull(store, upstreams, swarms, cluster, settings or PullSettings(), lambda: script.now)
        script = Script(store, cluster, engine, registry, swarms, pull, upstreams)
        try:
            await swarms.start()
            await pull.start()
            try:
                await case(script)
            finally:
                await pull.stop()
                await swarms.stop()
        finally:
            await store.close()

    run_virtual(main())
