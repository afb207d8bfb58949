"""Rollouts by real agents whose engine is BitTorrent: without a tracker, and while nodes die."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rollout

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]  # a dozen processes, on a machine that may be slow


def run(*arguments: str) -> dict[str, object]:
    argv = [sys.executable, str(Path(rollout.__file__)), "--json", "--nice", "0", "--engine", "bittorrent", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    row = dict(json.loads(done.stdout))
    assert row["verified"] is True and not row["errors"]
    return row


def test_a_cluster_whose_trackers_are_gone_rolls_out_a_new_image_with_two_copies_from_upstream_at_most() -> None:
    row = run("--nodes", "4", "--size", "4", "--kill-tracker=-1")
    assert row["egress_log_ratio"] <= 2.0


def test_when_two_and_then_four_of_twelve_die_midway_the_others_finish_and_upstream_sends_little_twice() -> None:
    deaths = "3@40%,8@40%,5@70%,11@70%"
    row = run("--nodes", "12", "--rate", "20", "--size", "4", "--kill", deaths)
    assert [node["node"] for node in row["runs"][0]["nodes"] if node["seconds"] is None] == [3, 5, 8, 11]
    assert row["egress_log_ratio"] <= 1.25
