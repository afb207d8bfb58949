"""The picture of a rollout: what every node has over time, the fluid limit, and what the registry sent."""

from __future__ import annotations

from pathlib import Path

from lab.process import LabError
from rollout_model import Result, Settings
from rollout_report import describe


def draw(path: Path, settings: Settings, result: Result) -> None:
    """Writes an SVG (or what the suffix says). LabError where the extra `plot` is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise LabError("--plot needs matplotlib: install the extra, p2pdist[plot]") from None

    # Text as text and no date or random ids inside: the same rollout gives the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "p2pdist", "font.size": 9}
    with pyplot.rc_context(style):
        figure, (nodes, egress) = pyplot.subplots(2, 1, figsize=(8, 5.6), sharex=True, height_ratios=[3, 1])
        seconds = [sample.second for sample in result.progress]
        named: set[str] = set()  # a legend names each once
        for index, node in enumerate(result.nodes):
            share = [sample.received[index] / settings.size for sample in result.progress]
            gone = node.seconds is None
            colour, width = ("tab:red", 0.8) if gone else ("tab:blue", 0.9)
            name = "a node that died or hung" if gone else "each node"
            label = name if name not in named else None
            named.add(name)
            nodes.plot(seconds, share, color=colour, linewidth=width, alpha=0.6, label=label)
            if node.seconds is not None:
                nodes.plot([node.offset + node.seconds], [1.0], marker="|", color="tab:blue", markersize=9)
        first, *others = sorted({(node.offset, node.limit) for node in result.nodes})
        for offset, limit in [first, *others]:
            label = "fluid limit" if (offset, limit) == first else None
            nodes.plot([offset, offset + limit], [0, 1], color="black", linestyle="--", linewidth=1, label=label)
        nodes.set_ylabel("received / image size")
        nodes.set_ylim(0, 1.1)
        nodes.legend(loc="lower right", frameon=False)
        nodes.set_title(describe(settings), fontsize=9)
        egress.plot(seconds, [sample.sent / settings.size for sample in result.progress], color="tab:green")
        egress.axhline(1.0, color="black", linestyle="--", linewidth=1)
        egress.set_ylabel("registry sent / size")
        egress.set_xlabel("seconds")
        egress.set_ylim(bottom=0)
        for axes in (nodes, egress):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlim(left=0)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)
