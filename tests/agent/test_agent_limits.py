"""docs/security.md names a metric for each limit; here it is looked whether a running agent and tracker have it."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
from prometheus_client.exposition import generate_latest
from support.fleet import Fleet
from support.registry import FakeRegistry

from p2pdist.cli.demo.cluster import free_port

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


async def test_every_limit_has_a_metric_that_exists(tmp_path: Path) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and line.count("|") == 6][2:]
    named = {name for row in rows for name in re.findall(r"`(p2pdist_\w+)`", row)}
    assert len(rows) > 15 and all(re.search(r"`p2pdist_\w+`", row) for row in rows)
    settings = {"metrics_port": free_port("127.0.0.1", 0)}  # with certificates: some limits exist only with them
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=settings) as fleet:
        node = await fleet.start()
        shown = generate_latest(node.agent._make_metrics()).decode()
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{settings['metrics_port']}/metrics") as answer,
        ):
            shown += await answer.text()
    assert named - set(re.findall(r"^(p2pdist_\w+)", shown, re.MULTILINE)) == set()
