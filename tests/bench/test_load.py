"""A small load on a real tracker: how many messages a rollout costs. Counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = Path(__file__).resolve().parents[2] / "bench" / "load.py"
AGENTS, LAYERS, CHUNKS = 40, 10, 3


@pytest.mark.parametrize("more", [[], ["--tls"]], ids=["plain", "tls"])
def test_a_rollout_costs_sixteen_messages_per_agent_and_three_per_chunk(more: list[str]) -> None:
    argv = [sys.executable, str(LOAD), "--agents", str(AGENTS), "--layers", str(LAYERS), "--chunks", str(CHUNKS)]
    argv += ["--seconds", "1", "--json", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in {0, 1}, done.stderr  # 1: an answer took over a second; the machine may be busy
    result = json.loads(done.stdout)
    sent, received = result["sent"], result["received"]
    assert sent["Done"] == AGENTS * LAYERS and received["Joined"] == AGENTS
    # two questions, a join, a done for each layer; two contents (or a fetch and an offer) and the answer to the join
    assert result["messages_per_agent"] <= 2 + 1 + LAYERS + 2 + 1 + 0.5
    # lease, half, got: a chunk that is leased twice, or a message more, shows here
    assert result["messages_per_chunk"] <= 3.0
    assert received["Lease"] <= LAYERS * CHUNKS
