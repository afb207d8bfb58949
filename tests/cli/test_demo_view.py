"""What one sees while the demo runs is what is."""

from __future__ import annotations

import io

from rich.console import Console

from p2pdist.cli.demo.pull import Pull
from p2pdist.cli.demo.rollout import NodeProgress
from p2pdist.cli.demo.view import LineView, LiveView, view_for

SIZE = 1000


def node(upstream: int = 0, peers: int = 0, **changes) -> NodeProgress:
    entry = NodeProgress("node-1", "127.0.0.2", Pull("http://127.0.0.2:1", "r", "t", "ns"), upstream, peers)
    for name, value in changes.items():
        setattr(entry if hasattr(entry, name) else entry.pull, name, value)
    return entry


def bars(entry: NodeProgress) -> dict[str, int]:
    bar = LiveView(Console(file=io.StringIO(), width=100), SIZE)._bar(entry)
    counts: dict[str, int] = {}
    for span in bar.spans:
        counts[str(span.style)] = counts.get(str(span.style), 0) + span.end - span.start
    return counts


def test_the_bar_shows_what_came_from_where():
    width = sum(bars(node()).values())
    assert bars(node(upstream=250, peers=500)) == {
        "yellow": width // 4,
        "green": width // 2,
        "bright_black": width - width // 4 - width // 2,
    }


def test_the_bar_never_grows_beyond_its_end():
    width = sum(bars(node()).values())
    assert sum(bars(node(upstream=700, peers=900)).values()) == width


def test_a_terminal_gets_bars_and_everything_else_gets_lines():
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True), SIZE), LiveView)
    assert isinstance(view_for(Console(file=io.StringIO()), SIZE), LineView)


def test_lines_come_at_most_once_a_second_and_without_escape_sequences():
    out = io.StringIO()
    with LineView(Console(file=out, width=200), SIZE) as view:
        view.step("starting")
        for tenth in range(25):
            view.show([node(100, 300), node(0, 500, seconds=1.0)], tenth / 10)
    lines = out.getvalue().splitlines()
    assert lines[0] == "starting ..."
    assert [line.split()[0] for line in lines[1:]] == ["0.0", "1.0", "2.0"]
    assert "100 B from the registry, 800 B from peers, of 2.0 KiB; 1 of 2 nodes done" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_the_live_view_says_who_is_done_killed_or_failed():
    out = io.StringIO()
    with LiveView(Console(file=out, width=120, force_terminal=True), SIZE) as view:
        view.show([node(seconds=2.5), node(killed=True), node(error="cut")], 3.0)
        for wanted in ("2.50 s", "killed", "failed", "3.0 s"):
            assert wanted in out.getvalue()
