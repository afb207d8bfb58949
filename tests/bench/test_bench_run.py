"""One small run of the bench without peers, whose figures are known beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROLLOUT = Path(__file__).resolve().parents[2] / "bench" / "rollout.py"

pytestmark = pytest.mark.system


def run(*arguments: str) -> tuple[int, dict[str, object]]:
    argv = [sys.executable, str(ROLLOUT), "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_without_peers_the_registry_sends_a_copy_per_node_and_the_last_waits_for_all() -> None:
    status, row = run("--transport", "plain", "--nodes", "3", "--size", "2", "--layers", "2", "--start", "together")
    assert status == 0
    assert row["verified"] is True
    assert row["egress_log_ratio"] == pytest.approx(3.0, abs=0.01)
    assert row["egress_ratio"] == pytest.approx(3.0, abs=0.1)
    assert row["last_ratio"] > 2.0
    assert row["settings"]["nodes"] == 3
    assert len(row["runs"][0]["nodes"]) == 3


def test_real_containerd_pulls_the_same() -> None:
    status, row = run("--transport", "plain", "--driver", "containerd", "--nodes", "2", "--size", "1")
    assert status == 0
    assert row["egress_log_ratio"] == pytest.approx(2.0, abs=0.01)


def test_a_picture_shows_every_node(tmp_path: Path) -> None:
    picture = tmp_path / "rollout.svg"
    run("--transport", "plain", "--nodes", "2", "--size", "1", "--plot", str(picture))
    text = picture.read_text()
    assert "fluid limit" in text and "registry sent / size" in text
