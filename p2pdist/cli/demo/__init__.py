"""`p2pdist demo`: a whole rollout on this machine, nothing prepared, and proof that it was what it should be."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from p2pdist.cli.demo.cluster import started_cluster
from p2pdist.cli.demo.image import MIN_LAYER, DemoImage, make_image
from p2pdist.cli.demo.report import Report
from p2pdist.cli.demo.rollout import Rollout
from p2pdist.cli.demo.view import View, view_for
from p2pdist.cli.running import only_error
from p2pdist.config import human_size, parse_size
from p2pdist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. Sizes in bytes."""

    nodes: int
    size: int
    layers: int
    kill: int


def demo(
    nodes: Annotated[int, typer.Option(min=1, max=100, help="How many nodes pull.")] = 8,
    size: Annotated[str, typer.Option(help="Size of the image.")] = "64MiB",
    layers: Annotated[int, typer.Option(min=1, max=100, help="In how many layers.")] = 4,
    kill: Annotated[int, typer.Option(min=0, help="Kill so many nodes midway.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data, the configuration files and the logs.")] = False,
) -> None:
    """Roll an image out to N nodes on this machine, all at once, and prove every byte.

    A registry, a tracker and N agents, each its own process on a loopback address of its own.

    Exit status: 1 if a node fails, a digest is wrong, or over 1.05 copies were sent (with --kill: 1.10).
    """
    plan = _plan(nodes, size, layers, kill)
    console = Console(stderr=as_json)
    with _directory(plan, keep, console) as directory:
        try:
            report = uvloop.run(_run(plan, directory, console))
        except BaseExceptionGroup as group:
            raise only_error(group) from group
        if as_json:
            sys.stdout.write(json.dumps(report.as_json()) + "\n")
        else:
            console.print(report.as_text(), soft_wrap=True)
        if report.problems:
            raise typer.Exit(1)


def _plan(nodes: int, size: str, layers: int, kill: int) -> Plan:
    try:
        plan = Plan(nodes, parse_size(size), layers, kill)
    except ValueError as error:
        raise ConfigError(f"--size: {error}") from error
    if plan.size < MIN_LAYER * layers:
        raise ConfigError(f"--size: {layers} layers take at least {human_size(MIN_LAYER * layers)}")
    if kill >= nodes:
        raise ConfigError(f"--kill: {kill} of {nodes} nodes leaves none to finish")
    return plan


@contextmanager
def _directory(plan: Plan, keep: bool, console: Console) -> Iterator[Path]:
    """Where the demo writes; gone afterwards, unless it is to be kept or something failed and the logs are wanted."""
    needed = plan.size * (plan.nodes + 1)
    parent = Path(tempfile.gettempdir())
    if shutil.disk_usage(parent).free < needed * 1.1:
        raise ConfigError(
            f"{plan.nodes} nodes with {human_size(plan.size)} need {human_size(needed)} in {parent}, which has less; "
            "take a smaller --size, fewer --nodes, or set TMPDIR to a place with room"
        )
    directory = Path(tempfile.mkdtemp(prefix="p2pdist-demo-", dir=parent))
    failed = False
    try:
        yield directory
    except (KeyboardInterrupt, asyncio.CancelledError):
        with suppress(OSError):  # the terminal may have been closed
            console.print("Stopped; every process of the demo is gone.")
        raise typer.Exit(130) from None
    except BaseException:
        failed = True
        raise
    finally:
        if keep:
            console.print(f"Kept: {directory}", highlight=False, soft_wrap=True)
        elif failed:
            _keep_only_logs(directory)
            console.print(f"The logs are in {directory}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(directory)


def _keep_only_logs(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.suffix not in (".log", ".toml"):
            entry.unlink()


async def _run(plan: Plan, directory: Path, console: Console) -> Report:
    with view_for(console, plan.size) as view, _cancelled_by_signals():
        image = await _make_image(plan, directory, view)
        view.step(f"starting a registry, a tracker and {plan.nodes} agents")
        async with started_cluster(directory, image, plan.nodes) as cluster:
            rollout = Rollout(cluster, image, plan.kill, view.show)
            await rollout.run()
            sent = await cluster.sent_by_registry()
            view.step("stopping")
            return Report(image, plan.kill, rollout.progress, sent, await cluster.stop())


async def _make_image(plan: Plan, directory: Path, view: View) -> DemoImage:
    """In a thread, which a cancellation stops at its next piece: nothing goes on behind our back."""
    view.step(f"making an image of {human_size(plan.size)} in {plan.layers} layers")
    cancelled = threading.Event()
    try:
        return await asyncio.to_thread(make_image, directory / "image", plan.size, plan.layers, cancelled.is_set)
    finally:
        cancelled.set()


@contextmanager
def _cancelled_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal cancel the current task; what then cleans up is not disturbed by more."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal() -> None:
        if not task.cancelling():
            task.cancel()

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
