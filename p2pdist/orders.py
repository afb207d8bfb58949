"""What operators have ordered about images, on one agent: the deny list, what is kept, what is pulled ahead."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from p2pdist.config import AgentConfig
from p2pdist.denylist import DenyList
from p2pdist.guard import Guard
from p2pdist.oci import Digest, Reference
from p2pdist.preheat import Preheater
from p2pdist.protocol import messages as wire
from p2pdist.pull import Cluster, Pull
from p2pdist.retention import Retention
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.service import SwarmService


class Orders:
    """An asynchronous context manager: in force between its ends. The mirror gets its images from `source`."""

    def __init__(self, config: AgentConfig, store: Store, swarms: SwarmService, pull: Pull, session: Cluster) -> None:
        self.retention = Retention.of(config, store)
        self.denied = DenyList(store, swarms, self.retention.catalogue, config.node.data_dir / "deny.json")
        self.source = Guard(pull, self.denied, self.retention, running=True)
        ahead = Guard(pull, self.denied, self.retention, running=False)
        self._store = store
        self._preheats = Preheater(ahead, swarms, session.send, self._keep)
        self._scope = Scope()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self.retention.load()
            await self.denied.load()
            await self._scope.start()
            stack.push_async_callback(self._scope.stop)
            self._scope.spawn(self.retention.run())
            self._scope.spawn(self.denied.run())
            await self._preheats.start()
            stack.push_async_callback(self._preheats.stop)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def heard(self, message: wire.FromTracker) -> None:
        """A message came from the tracker; those about other things are none of its business."""
        match message:
            case wire.DenyList() | wire.DenyChange():
                self.denied.heard(message)
            case wire.Preheat() | wire.CancelPreheat():
                self._preheats.heard(message)

    def status(self) -> dict[str, Any]:
        """Counts, for status and metrics."""
        return {
            "denied_entries": len(self.denied.denials),
            "denied_requests": self.denied.refused,
            "denied_blobs_removed": self.denied.removed,
            "preheats_running": self._preheats.running,
            "preheats_done": self._preheats.counts["done"],
            "preheats_failed": self._preheats.counts["failed"],
        }

    async def _keep(self, reference: Reference, digest: Digest, seconds: int, origin: str) -> None:
        """A preheated image is to be kept: by its tag, which may move on, or by its digest where it has none."""
        repository = reference.repository
        if reference.tag is None:
            await self.retention.add(f"{repository}@{digest}", seconds, origin)
            return
        if reference.digest is not None:  # nobody has asked for the tag itself: it was said together with the digest
            self._store.set_tag(str(repository), reference.tag, str(digest), time.time())
        await self.retention.add(f"{repository}:{reference.tag}", seconds, origin)
