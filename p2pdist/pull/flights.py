"""Single flight: whoever asks for the same at the same time waits for the same work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from p2pdist.scope import Scope

T = TypeVar("T")


class Flights(Generic[T]):
    """The scope owns the work, not who asked first: a client that leaves cancels nothing."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._flights: dict[str, asyncio.Future[T]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._flights

    async def join(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """The result, or the error, of the one run of `work` for `key`."""
        return await asyncio.shield(self.start(key, work))

    def start(self, key: str, work: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """The one run of `work` for `key`, begun if there is none; await it shielded, or not at all."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
            self._scope.spawn(self._fly(key, flight, work))
        return flight

    async def _fly(self, key: str, flight: asyncio.Future[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001  (handed to everyone who waits)
            flight.set_exception(error)
            flight.exception()  # read: everyone may have left
        except asyncio.CancelledError:
            flight.cancel()
            raise
        else:
            flight.set_result(result)
        finally:
            self._flights.pop(key, None)
