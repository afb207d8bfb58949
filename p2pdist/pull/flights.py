"""Single flight: whoever asks for the same at the same time waits for the same work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from p2pdist.scope import Scope

T = TypeVar("T")


class Flights(Generic[T]):
    """The scope owns the work, not who asked first: a client that leaves cancels nothing."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._flights: dict[str, asyncio.Future[T]] = {}

    async def join(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result, or the error, of the one run of `work` for `key`."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
            self._scope.spawn(self._fly(key, flight, work()))
        return await asyncio.shield(flight)

    async def _fly(self, key: str, flight: asyncio.Future[T], work: Coroutine[Any, Any, T]) -> None:
        try:
            result = await work
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
