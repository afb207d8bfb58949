"""A TaskGroup whose tasks come and go over the life of a service, stopped as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

_log = structlog.get_logger("p2pdist")


class Scope:
    """Owns every task of one service. A task that fails unexpectedly is logged and does not take the others down."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Ready for `spawn`."""
        await self._group.__aenter__()

    async def stop(self) -> None:
        """Cancel what still runs and wait until it is gone."""
        for task in list(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`; the scope cancels it at its end."""
        task = self._group.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began: nothing ever awaited it
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001  (one broken task must not end the service)
            _log.exception("a background task failed")
