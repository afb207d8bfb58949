"""What the demo found: the numbers, what is not as promised, and both as a table or as JSON. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pdist.cli.demo.image import DemoImage
from p2pdist.cli.demo.rollout import NodeProgress
from p2pdist.cli.units import in_bytes

MOST_COPIES = 1.05
MOST_COPIES_KILLED = 1.10  # what a killed node had fetched and not passed on is fetched again


@dataclass(frozen=True, slots=True)
class Report:
    """Results of one rollout. `sent` is the registry's own count by digest; `ended_badly` what stopping brought out."""

    image: DemoImage
    kill: int
    nodes: Sequence[NodeProgress]
    sent: Mapping[str, int]
    ended_badly: Sequence[str] = ()

    @property
    def alive(self) -> list[NodeProgress]:
        return [node for node in self.nodes if not node.killed]

    @property
    def seconds(self) -> list[float]:
        """Of the nodes that were to finish and did."""
        return [node.pull.seconds for node in self.alive if node.pull.seconds is not None]

    @property
    def copies(self) -> float:
        return sum(self.sent.values()) / self.image.size

    @property
    def most_copies(self) -> float:
        return MOST_COPIES_KILLED if self.kill else MOST_COPIES

    def verified(self, node: NodeProgress) -> bool:
        """Whether every digest of the image was proved on what this node's daemon received."""
        return node.pull.proved == set(self.image.digests)

    @property
    def problems(self) -> list[str]:
        """Everything that is not as promised; empty: all is well."""
        wrong = []
        for node in self.alive:
            if node.pull.error:
                wrong.append(f"{node.name}: {node.pull.error}")
            elif not self.verified(node):
                wrong.append(f"{node.name}: the image that arrived is not the one that was rolled out")
        if (killed := len(self.nodes) - len(self.alive)) != self.kill:
            wrong.append(f"{killed} of {self.kill} nodes could be killed midway; a larger --size takes longer")
        if self.copies > self.most_copies:
            wrong.append(f"the registry sent {self.copies:.3f} copies; at most {self.most_copies:.2f} were promised")
        return wrong + list(self.ended_badly)

    def as_json(self) -> dict[str, object]:
        """One object for scripts; sizes in bytes."""
        seconds = self.seconds
        return {
            "nodes": len(self.nodes),
            "killed": len(self.nodes) - len(self.alive),
            "layers": len(self.image.layers),
            "image_bytes": self.image.size,
            "seconds": {
                "p50": round(statistics.median(seconds), 3) if seconds else None,
                "last": round(max(seconds), 3) if seconds and len(seconds) == len(self.alive) else None,
            },
            "bytes_from_upstream": sum(node.from_upstream for node in self.nodes),
            "bytes_from_peers": sum(node.from_peers for node in self.nodes),
            "bytes_sent_by_registry": sum(self.sent.values()),
            "copies_from_upstream": round(self.copies, 4),
            "digests_proved": sum(len(node.pull.proved & set(self.image.digests)) for node in self.alive),
            "verified": bool(self.alive) and all(self.verified(node) for node in self.alive),
            "problems": self.problems,
        }

    def as_text(self) -> RenderableType:
        """The table, one line that says what it means, and what is wrong."""
        return Group(
            self._table(), Text(), *self._summary(), *(Text(f"✗ {line}", "bold red") for line in self.problems)
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for heading in ("node", "mirror"):
            table.add_column(heading)
        for heading in ("seconds", "from registry", "from peers", "digests proved"):
            table.add_column(heading, justify="right")
        wanted = len(self.image.digests)
        for node in self.nodes:
            seconds = "killed" if node.killed else "failed" if node.pull.seconds is None else f"{node.pull.seconds:.2f}"
            proved = len(node.pull.proved & set(self.image.digests))
            style = "dim" if node.killed else None if self.verified(node) else "red"
            table.add_row(
                node.name,
                node.pull.mirror.removeprefix("http://"),
                seconds,
                Text(in_bytes(node.from_upstream), "yellow"),
                Text(in_bytes(node.from_peers), "green"),
                f"{proved}/{wanted}",
                style=style,
            )
        return table

    def _summary(self) -> list[Text]:
        size, seconds = in_bytes(self.image.size), self.seconds
        lines = [
            Text.assemble(
                f"The registry sent {in_bytes(sum(self.sent.values()))} of a {size} image: ",
                (f"{self.copies:.2f} copies", "bold red" if self.copies > self.most_copies else "bold green"),
                f" for {len(self.nodes)} nodes (at most {self.most_copies:.2f}; without p2pdist: {len(self.nodes)}).",
            )
        ]
        if seconds:
            middle, last = statistics.median(seconds), max(seconds)
            lines.append(Text(f"Half of the nodes had it after {middle:.2f} s, the last one after {last:.2f} s."))
        return lines
