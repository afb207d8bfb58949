"""docs/security.md names a metric for each limit; here it is looked whether a running agent and tracker have it."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.exposition import generate_latest
from support.fleet import Fleet
from support.registry import FakeRegistry

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


async def test_every_limit_has_a_metric_that_exists(tmp_path: Path) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and line.count("|") == 6][2:]
    named = {name for row in rows for name in re.findall(r"`(p2pdist_\w+)`", row)}
    assert len(rows) > 15 and all(re.search(r"`p2pdist_\w+`", row) for row in rows)
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, insecure=True) as fleet:
        node = await fleet.start()
        shown = generate_latest(node.agent._make_metrics()).decode()
        async with fleet.client.get(fleet.tracker.url + "/metrics") as answer:
            shown += await answer.text()
    assert named - set(re.findall(r"^(p2pdist_\w+)", shown, re.MULTILINE)) == set()
