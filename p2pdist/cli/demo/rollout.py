"""The demo's main act: all nodes pull at the same moment, some may be killed midway, everything is watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from p2pdist.admin import AdminError
from p2pdist.cli.demo.cluster import REGISTRY, Cluster, Node, transfer_of
from p2pdist.cli.demo.image import DemoImage
from p2pdist.cli.demo.pull import Pull

REPOSITORY, TAG = "demo/rollout", "latest"
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class NodeProgress:
    """One node during the rollout: what its agent says it took from where (bytes), and what its daemon received."""

    name: str
    host: str
    pull: Pull
    from_upstream: int = 0
    from_peers: int = 0
    killed: bool = False

    @property
    def arrived(self) -> int:
        return max(self.from_upstream + self.from_peers, self.pull.received)

    @property
    def over(self) -> bool:
        return self.killed or bool(self.pull.error) or self.pull.seconds is not None


@dataclass(slots=True)
class Rollout:
    """A rollout of `image` to every node of `cluster`; `kill` of them are killed when half of it is there."""

    cluster: Cluster
    image: DemoImage
    kill: int
    show: Callable[[Sequence[NodeProgress], float], None]
    progress: list[NodeProgress] = field(init=False)

    def __post_init__(self) -> None:
        self.progress = [
            NodeProgress(node.name, node.host, Pull(node.mirror, REPOSITORY, TAG, REGISTRY))
            for node in self.cluster.nodes
        ]

    async def run(self) -> None:
        """Until every pull that was not killed has ended, well or not; `progress` tells."""
        start = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            pulls = [group.create_task(entry.pull.run(start)) for entry in self.progress]
            begun = time.monotonic()
            start.set()
            while not all(task.done() for task in pulls):
                await asyncio.wait(pulls, timeout=_LOOK_SECONDS)
                await self._look()
                self._kill_who_is_midway()
                self.show(self.progress, time.monotonic() - begun)
        await self._look()
        self.show(self.progress, time.monotonic() - begun)

    async def _look(self) -> None:
        async def ask(node: Node, entry: NodeProgress) -> None:
            try:
                transfer = await transfer_of(node)
            except AdminError:
                return  # killed, or too busy this time: what it said last stands
            entry.from_upstream, entry.from_peers = transfer["bytes_from_upstream"], transfer["bytes_from_peers"]

        async with asyncio.TaskGroup() as group:
            for node, entry in zip(self.cluster.nodes, self.progress, strict=True):
                if not entry.killed:
                    group.create_task(ask(node, entry))

    def _kill_who_is_midway(self) -> None:
        victims = list(zip(self.cluster.nodes, self.progress, strict=True))[len(self.progress) - self.kill :]
        for node, entry in victims:
            if not entry.over and entry.arrived >= self.image.size // 2:
                node.child.kill()
                entry.killed = True
