"""Alarms: every metric that one names exists in what a real agent and a real tracker show, and each is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from support.fleet import Fleet
from support.registry import FakeRegistry

from p2pdist.admin import AdminClient
from p2pdist.config import TrustConfig

ROOT = Path(__file__).resolve().parents[2]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
METRIC = re.compile(r"\bp2pdist_[a-z0-9_]+")


def names(text: str) -> set[str]:
    """What a page of metrics shows, values or not."""
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    return shown | {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and line[0] != "#"}


async def test_every_metric_that_an_alarm_names_is_shown_by_an_agent_or_a_tracker(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    settings = {"metrics_port": _free_port()}
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=settings) as fleet:
        trust = TrustConfig(enforcement="enforce", policy_file=policy)
        node = await fleet.start(trust=trust)
        async with AdminClient(node.config.admin_socket) as admin:
            shown = names(await admin.metrics())
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://127.0.0.1:{settings['metrics_port']}/metrics") as answer,
        ):
            shown |= names(await answer.text())
    unknown = {rule["alert"]: set(METRIC.findall(rule["expr"])) - shown for rule in RULES}
    assert {alert: missing for alert, missing in unknown.items() if missing} == {}


def test_every_alarm_is_explained_and_nothing_else_is() -> None:
    explained = re.findall(r"^\| `(P2pdist\w+)` \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert explained == [rule["alert"] for rule in RULES]


def test_every_alarm_says_how_bad_it_is_and_what_has_happened() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule
        assert rule["annotations"]["summary"], rule
        assert METRIC.findall(rule["expr"]) or "up{" in rule["expr"], rule


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
