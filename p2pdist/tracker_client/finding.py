"""Opening a session with whichever tracker answers, and parting from those that are not needed any more."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import structlog

from p2pdist.errors import ProtocolError, TrackerError
from p2pdist.places import Place, Places, race
from p2pdist.protocol.messages import Welcome
from p2pdist.tracker_client.session import CLOSE_TIMEOUT, Me, Session

log = structlog.get_logger()

Found = tuple[Session, Welcome]
T = TypeVar("T")


class Finder:
    """An asynchronous context manager: what it opened is closed when it ends."""

    def __init__(self, places: Places, me: Me, tls: ssl.SSLContext | None) -> None:
        self.places = places
        self._me = me
        self._tls = tls
        self._open: set[Session] = set()
        self._farewells = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await self._farewells.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.places.close()
        self.part()
        await self._farewells.__aexit__(None, None, None)
        await self._http.close()

    def part(self, keep: Session | None = None) -> None:
        """Close every session but this one, in the background."""
        for session in self._open - {keep}:
            self._open.discard(session)
            self._farewells.create_task(_farewell(session))

    async def round(self, places: Sequence[Place], timeout: float) -> Found | None:
        """A session at one of the places, the first that says something. Only one at a time hears who we are.

        `timeout`: seconds for each to show that it lives, and again for the greeting.
        """
        left = list(places)

        async def attempt(place: Place) -> Session | None:
            session = await guarded(place, timeout, Session.open(self._http, place, self._tls))
            if session is None:
                left.remove(place)
            else:
                self._open.add(session)
            return session

        while left:
            session = await race(left[:], attempt)
            if session is None:
                break
            left.remove(session.place)
            welcome = await guarded(session.place, timeout, session.greet(self._me))
            self.part(session if welcome is not None else None)
            if welcome is not None:
                return session, welcome
        return None


async def guarded(place: Place, timeout: float | None, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, and a line in the log, where the tracker doesn't answer as it should."""
    try:
        async with asyncio.timeout(timeout):
            return await work
    except ProtocolError as error:
        log.warning("tracker session closed: malformed", url=place.base, error=str(error))
    except TrackerError as error:
        log.warning("tracker refuses", url=place.base, error=str(error))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.info("no tracker session", url=place.base, error=str(error) or type(error).__name__)
    return None


async def _farewell(session: Session) -> None:
    try:
        async with asyncio.timeout(2 * CLOSE_TIMEOUT):
            await session.close()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.debug("a session ended without a goodbye", url=session.place.base, error=str(error))
