"""A node that does without encryption says so, at the start and whenever it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from structlog.testing import capture_logs
from support.fleet import Fleet
from support.registry import FakeRegistry

from p2pdist.cli.status import status_table


@pytest.mark.parametrize("insecure", [True, False])
async def test_status_and_log_say_whether_the_cluster_is_insecure(tmp_path: Path, insecure: bool) -> None:
    with capture_logs() as logs:
        async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=insecure) as fleet:
            status = (await fleet.start()).agent.status()
    assert status["insecure"] is insecure
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    with console.file:
        console.print(status_table(status))
    (line,) = [line for line in console.export_text().splitlines() if line.startswith("insecure")]
    assert line.split() == ["insecure", "yes" if insecure else "no"]
    warnings = [entry for entry in logs if entry["log_level"] == "warning" and "insecure" in entry["event"]]
    assert len(warnings) == (2 if insecure else 0)  # the agent's and the tracker's
