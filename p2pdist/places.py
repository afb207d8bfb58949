"""Where the trackers of a cluster are: every address behind every configured URL, in an order of this node's own.

Each node ranks the addresses by a hash of its own name with each of them: nodes spread evenly over replicas, a node
that loses its replica goes to its next one, and a replica that comes back is missed by exactly those whose first it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog

_log = structlog.get_logger("p2pdist.places")

RESOLVE = 0.5  # seconds for a name whose addresses are known from before; then those are used
RESOLVE_FIRST = 5.0  # seconds for one that was never resolved
MAX_ADDRESSES = 64  # of one name
STAGGER = 0.4  # seconds after which the next place is tried beside one that doesn't answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """One tracker: the URL it was configured as, and one of the addresses of its host (in text)."""

    url: str
    address: str

    @property
    def base(self) -> str:
        """The URL by address, without a slash at the end."""
        parts = urlsplit(self.url)
        host = f"[{self.address}]" if ":" in self.address else self.address
        port = f":{parts.port}" if parts.port is not None else ""
        return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"

    @property
    def headers(self) -> dict[str, str]:
        """What a request to `base` carries: the name under which the tracker was configured."""
        return {"Host": urlsplit(self.url).netloc}

    @property
    def name(self) -> str:
        """The host in the URL: what a public certificate is for."""
        return urlsplit(self.url).hostname or ""


def addresses_of(host: str, port: int) -> list[str]:
    """The addresses of a name, in text; blocks. OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Places:
    """`ranked` looks the names up anew and gives the places best first. `taste`: what makes this node's order its own.

    A name that can't be resolved now keeps the addresses it had; a look-up that hangs is waited for no longer than
    `RESOLVE` and never begun twice.
    """

    def __init__(
        self,
        urls: Sequence[str],
        taste: bytes,
        *,
        resolve: Callable[[str, int], list[str]] = addresses_of,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._taste = taste
        self._resolve = resolve
        self._known: dict[str, list[str]] = {}  # by URL
        self._looking: dict[str, asyncio.Future[list[str]]] = {}  # in threads

    def __len__(self) -> int:
        return len(self._urls)

    async def ranked(self) -> list[Place]:
        """Every place there is now, each once."""
        async with asyncio.TaskGroup() as tasks:
            for url in self._urls:
                tasks.create_task(self._look_up(url))
        places = {
            (address, urlsplit(url).port, urlsplit(url).path): Place(url, address)
            for url in reversed(self._urls)
            for address in self._known.get(url, ())
        }
        return sorted(places.values(), key=self._rank)

    def _rank(self, place: Place) -> bytes:
        return hashlib.sha256(self._taste + place.base.encode()).digest()

    async def _look_up(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            self._known[url] = [str(ip_address(host))]
            return
        except ValueError:
            pass
        looking = self._looking.get(url)
        if looking is None:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            looking = asyncio.get_running_loop().run_in_executor(None, self._resolve, host, port)
            self._looking[url] = looking
        await asyncio.wait({looking}, timeout=RESOLVE if url in self._known else RESOLVE_FIRST)
        if not looking.done():
            _log.info("a tracker's name is not resolved in time", host=host)
            return
        del self._looking[url]
        try:
            found = looking.result()[:MAX_ADDRESSES]
        except (OSError, UnicodeError) as error:
            _log.info("a tracker's name can't be resolved", host=host, error=str(error))
            return
        if found:
            self._known[url] = found

    def close(self) -> None:
        """Give up the look-ups that hang."""
        for looking in self._looking.values():
            looking.cancel()
        self._looking.clear()


async def race(
    places: Sequence[Place], attempt: Callable[[Place], Coroutine[Any, Any, T | None]], stagger: float = STAGGER
) -> T | None:
    """What the first attempt to succeed gives; one begins `stagger` seconds after the other, or when one fails.

    `attempt` returns None where it fails. The other attempts are cancelled; one that succeeded in the same moment is
    the attempt's to put away.
    """
    waiting = list(places)
    async with asyncio.TaskGroup() as tasks:
        running: set[asyncio.Task[T | None]] = set()
        try:
            while waiting or running:
                if waiting:
                    running.add(tasks.create_task(attempt(waiting.pop(0))))
                done, running = await asyncio.wait(
                    running, timeout=stagger if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if (won := task.result()) is not None:
                        return won
        finally:
            for task in running:
                task.cancel()
    return None
