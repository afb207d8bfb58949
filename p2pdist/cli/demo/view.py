"""What one sees while the demo runs: a bar per node on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2pdist.cli.demo.rollout import NodeProgress
from p2pdist.cli.units import in_bytes

_LINE_SECONDS = 1.0


class View(Protocol):
    """A context manager; what it shows while it is open is gone, or above, when the report follows."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def step(self, text: str) -> None:
        """Say what is being done."""

    def show(self, nodes: Sequence[NodeProgress], elapsed: float) -> None:
        """How far the nodes are after `elapsed` seconds."""


def view_for(console: Console, image_size: int) -> View:
    """Live bars where the console is a terminal, else plain lines."""
    return LiveView(console, image_size) if console.is_terminal else LineView(console, image_size)


class LiveView:
    """One bar per node, redrawn in place."""

    def __init__(self, console: Console, image_size: int) -> None:
        self._size = image_size
        self._width = max(16, min(48, console.width - 46))
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that was closed (SIGHUP) takes no farewell
            self._live.stop()

    def step(self, text: str) -> None:
        self._live.update(Text(f"{text} ...", "bold"), refresh=True)

    def show(self, nodes: Sequence[NodeProgress], elapsed: float) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for justify in ("left", "left", "left", "right", "left"):
            table.add_column(justify=justify)
        for node in nodes:
            table.add_row(node.name, node.host, self._bar(node), in_bytes(min(node.arrived, self._size)), _state(node))
        copies = sum(node.from_upstream for node in nodes) / self._size
        heading = Text.assemble(("pulling", "bold"), f", {elapsed:.1f} s; taken from the registry: {copies:.2f} copies")
        legend = Text.assemble(("━━", "yellow"), " from the registry   ", ("━━", "green"), " from peers")
        self._live.update(Group(heading, table, legend), refresh=True)

    def _bar(self, node: NodeProgress) -> Text:
        upstream = self._cells(node.from_upstream)
        both = max(upstream, self._cells(node.from_upstream + node.from_peers))
        return Text.assemble(
            ("━" * upstream, "dim yellow" if node.killed else "yellow"),
            ("━" * (both - upstream), "dim green" if node.killed else "green"),
            ("━" * (self._width - both), "bright_black"),
        )

    def _cells(self, size: int) -> int:
        return min(self._width, round(self._width * size / self._size))


class LineView:
    """For logs and pipes: a line for each step, and at most one a second while nodes pull."""

    def __init__(self, console: Console, image_size: int) -> None:
        self._console = console
        self._size = image_size
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str) -> None:
        self._console.print(f"{text} ...", highlight=False, soft_wrap=True)

    def show(self, nodes: Sequence[NodeProgress], elapsed: float) -> None:
        if elapsed < self._next:
            return
        self._next = elapsed + _LINE_SECONDS
        upstream, peers = sum(node.from_upstream for node in nodes), sum(node.from_peers for node in nodes)
        done = sum(node.pull.seconds is not None for node in nodes)
        self._console.print(
            f"{elapsed:5.1f} s  {in_bytes(upstream)} from the registry, {in_bytes(peers)} from peers,"
            f" of {in_bytes(self._size * len(nodes))}; {done} of {len(nodes)} nodes done",
            highlight=False,
            soft_wrap=True,
        )


def _state(node: NodeProgress) -> Text:
    if node.killed:
        return Text("killed", "red")
    if node.pull.error:
        return Text("failed", "bold red")
    if node.pull.seconds is not None:
        return Text(f"{node.pull.seconds:.2f} s", "bold green")
    return Text("")
