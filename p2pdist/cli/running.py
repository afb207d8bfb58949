"""Runs a server command until it is told to stop: uvloop, signals, and one clear line when it can't go on."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from p2pdist.errors import OperationError

_GRACE_SECONDS = 5.0  # beyond what the server itself allows for finishing
_SETTLED_SECONDS = 2.0  # after which what has been loaded stays for as long as the process does


def run_server(server: Callable[[asyncio.Event], Awaitable[None]], shutdown_seconds: float) -> None:
    """Run `server(stop)` on uvloop. SIGTERM or SIGINT sets `stop`; a second one ends the process at once.

    A server that is asked to stop has `shutdown_seconds` and a little more; then OperationError. What it raises
    itself comes out as it is, alone, also from inside a TaskGroup.
    """
    try:
        uvloop.run(_until_stopped(server, shutdown_seconds))
    except BaseExceptionGroup as group:
        raise only_error(group) from group


async def _until_stopped(server: Callable[[asyncio.Event], Awaitable[None]], shutdown_seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    settling = loop.call_later(_SETTLED_SECONDS, _spare_what_stays)

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)  # asked twice: nothing more is waited for, not even interpreter shutdown
        structlog.get_logger().info("stopping", signal=number.name, at_most_seconds=shutdown_seconds)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with asyncio.timeout(None) as deadline:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_limit(stop, deadline, shutdown_seconds + _GRACE_SECONDS))
                await server(stop)
                watch.cancel()
    except TimeoutError as error:
        if deadline.expired():
            raise OperationError(
                f"not done {shutdown_seconds + _GRACE_SECONDS:g} s after the stop; ended anyway"
            ) from error
        raise
    finally:
        settling.cancel()


def _spare_what_stays() -> None:
    """No collection looks at modules, classes and settings again: 5 to 10% of an agent's CPU (bench/RESULTS.md)."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _limit(stop: asyncio.Event, deadline: asyncio.Timeout, seconds: float) -> None:
    await stop.wait()
    deadline.reschedule(asyncio.get_running_loop().time() + seconds)


def only_error(error: BaseException) -> BaseException:
    """The first error at the bottom of nested groups: the one that brought the others about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
