"""Short guards of two numbers that bench/lone.py and bench/rss.py measure in full."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab.lab import Lab

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import lone
import rss

pytestmark = pytest.mark.system

MIB = 1 << 20


def test_a_lone_agent_is_not_slower_than_a_direct_pull(lab: Lab) -> None:
    """The bench's goal is 1.10 with 256 MiB; here a fixed fraction of a second weighs eight times as much."""
    result = lone.measure(lab, size=32 * MIB, layers=4, rate=200.0, runs=1)
    assert result["seconds_agent"] <= 1.10 * result["seconds_direct"] + 0.4


def test_an_agents_memory_does_not_grow_with_the_blob(lab: Lab) -> None:
    small, large = rss.measure(lab, [32 * MIB, 384 * MIB])
    assert max(large["peak_rss"]) <= rss.GOAL
    for before, after in zip(small["peak_rss"], large["peak_rss"], strict=True):
        assert after - before <= 24 * MIB, "twelve times the size, the same memory"
