"""What a `FakeRegistry` can be told to do wrong. One answer's fault each; `FakeRegistry.fail` says whose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """Base of all."""


@dataclass(frozen=True)
class Status(Fault):
    """Answer with this status and body instead: 404, 429 with Retry-After, 500, an HTML page with 200..."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors":[{"code":"SCRIPTED","message":"scripted fault"}]}'


@dataclass(frozen=True)
class Cut(Fault):
    """Announce the whole length, send `after` bytes of the body, close the connection (`reset`: with an RST)."""

    after: int
    reset: bool = False


@dataclass(frozen=True)
class Stall(Fault):
    """Send `after` bytes of the body (None: not even the headers), then nothing until `release` or the end."""

    after: int | None
    release: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Corrupt(Fault):
    """Flip one bit of byte `at` of the content (counted in the whole blob)."""

    at: int = 0


@dataclass(frozen=True)
class WrongLength(Fault):
    """Announce and send `delta` bytes more (zeros) or fewer than the content has."""

    delta: int


@dataclass(frozen=True)
class Endless(Fault):
    """No Content-Length, and after the content zeros until the client goes away."""


@dataclass(frozen=True)
class NoLength(Fault):
    """The right bytes, chunked, without Content-Length."""


@dataclass(frozen=True)
class IgnoreRange(Fault):
    """200 with the whole content whatever Range was asked."""


@dataclass(frozen=True)
class ShiftRange(Fault):
    """206 with a Content-Range (and bytes) that starts `by` bytes later than asked, or claims another `total`."""

    by: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Headers(Fault):
    """The right answer with these headers set; None takes one away."""

    headers: Mapping[str, str | None]


@dataclass(frozen=True)
class Hold(Fault):
    """Answer rightly, but only once `release` is set. `arrived` counts who waits."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))


@dataclass(frozen=True)
class Call(Fault):
    """Whatever the test's own handler answers; None: the right answer."""

    handler: Callable[[web.Request], Awaitable[web.StreamResponse | None]]
