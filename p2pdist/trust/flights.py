"""One piece of work per key at a time: whoever asks meanwhile shares its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Abandoned(Exception):
    """Who did the work was cancelled; one of those waiting does it."""


class Flights(Generic[K, V]):
    """Invariant, whoever is cancelled when: a key in the table has somebody running its work; no one waits for ever.

    The work runs in the task of the first who asks; no task is made for it.
    """

    def __init__(self) -> None:
        self._flying: dict[K, asyncio.Future[V]] = {}

    async def join(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """The result of `work`, of whoever started it for this key; what it raises is raised to all."""
        while (flying := self._flying.get(key)) is not None:
            try:
                return await asyncio.shield(flying)
            except _Abandoned:
                continue
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._flying[key] = future
        try:
            value = await work()
        except BaseException as error:
            future.set_exception(_Abandoned() if isinstance(error, asyncio.CancelledError) else error)
            future.exception()  # read, so that nobody waiting is no warning
            raise
        else:
            future.set_result(value)
            return value
        finally:
            del self._flying[key]
