"""Signals: the first asks, the second doesn't; a server that doesn't end is ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from p2pdist.cli import running
from p2pdist.errors import OperationError, StorageError

STUBBORN = """
import asyncio
from p2pdist.cli.logs import set_up_logging
from p2pdist.cli.running import run_server
from p2pdist.config import LogConfig
set_up_logging(LogConfig())
async def serve(stop):
    print("up", flush=True)
    await stop.wait()
    print("asked", flush=True)
    await asyncio.Event().wait()
run_server(serve, 60.0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_server_to_stop_and_it_finishes(number):
    steps = []

    async def serve(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        steps.append("finishing")
        await asyncio.sleep(0)
        steps.append("finished")

    running.run_server(serve, 5.0)
    assert steps == ["finishing", "finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number):
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(number)
            assert process.stdout.readline() == b"asked\n"
            process.send_signal(number)
            assert process.wait(10) == 128 + number
        finally:
            process.kill()


def test_a_server_that_does_not_end_when_asked_is_ended(monkeypatch):
    monkeypatch.setattr(running, "_GRACE_SECONDS", 0.0)
    cleaned = []

    async def serve(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            async with asyncio.timeout(10.0):  # so that a server that is not ended fails here, instead of hanging
                await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(OperationError, match="not done"):
        running.run_server(serve, 0.01)
    assert cleaned


def test_a_server_that_was_not_asked_to_stop_has_no_time_limit(monkeypatch):
    monkeypatch.setattr(running, "_GRACE_SECONDS", 0.0)

    async def serve(stop: asyncio.Event) -> None:
        await asyncio.sleep(0.05)  # longer than the limit that would hold after a signal

    running.run_server(serve, 0.001)


def test_an_error_from_inside_nested_task_groups_comes_out_alone():
    async def fail() -> None:
        raise StorageError("disk on fire")

    async def serve(stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(fail())
            outer.create_task(stop.wait())

    with pytest.raises(StorageError, match="disk on fire"):
        running.run_server(serve, 1.0)


def test_a_servers_own_timeout_is_not_taken_for_ours():
    async def serve(stop: asyncio.Event) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        running.run_server(serve, 1.0)
