"""An event loop whose clock jumps: nothing in a test waits for real, and the same seed gives the same run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.loop.threads:  # real work in a thread: wait for it, time stands still
            return super().select(0.01 if timeout is None or timeout > 0 else 0)
        ready = super().select(0 if not self.loop.landing or timeout == 0 else 0.002)
        self.loop.landing = False
        if ready or timeout == 0:
            return ready
        if timeout is None:  # only another thread can bring something
            ready = super().select(10)
            if not ready:
                raise RuntimeError("nothing will ever happen: every task waits for something that nobody will do")
            return ready
        self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 1000 and moves only when everything waits."""

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        self.now = 1000.0
        self.threads = 0
        self.landing = False  # a thread has just ended: what it brings may be a moment behind
        super().__init__(selector)

    def thread_ended(self) -> None:
        self.threads -= 1
        self.landing = True

    def time(self) -> float:
        return self.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh virtual loop."""
    loop = VirtualLoop()
    submit = ThreadPoolExecutor.submit

    def counted(self: ThreadPoolExecutor, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        loop.threads += 1
        future = submit(self, fn, *args, **kwargs)
        future.add_done_callback(ended)
        return future

    def ended(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(loop.thread_ended)

    with mock.patch.object(ThreadPoolExecutor, "submit", counted), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
