"""The simulation: links share as they should, and a small rollout comes out where it is known to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simulate_links import Links

SIMULATE = Path(__file__).resolve().parents[2] / "bench" / "simulate.py"


def rates(up: list[float], down: list[float], flows: list[tuple[int, int]]) -> list[float]:
    links = Links(np.array(up), np.array(down))
    source, target = (np.array(ends, np.int32) for ends in zip(*flows, strict=True))
    for _ in range(4):  # the levels settle within a few steps
        found = links._rates(source, target)
    return [round(float(rate), 6) for rate in found]


def test_a_transfer_held_back_at_its_other_end_leaves_its_share_to_the_others() -> None:
    assert rates([1.0, 1.0, 1.0], [1.0, 0.25, 1.0], [(0, 1), (0, 2)]) == [0.25, 0.75]


def test_no_link_is_ever_asked_for_more_than_it_has_and_every_transfer_is_held_by_a_full_link() -> None:
    rng = np.random.default_rng(5)
    source, target = rng.integers(0, 13, 90), rng.integers(1, 13, 90)
    found = np.array(rates([1.0] * 13, [1.0] * 13, list(zip(source, target, strict=True))))
    up, down = np.bincount(source, found, 13), np.bincount(target, found, 13)
    assert up.max() < 1.001 and down.max() < 1.001
    # Max-min: on one of its two links, full, no other transfer gets more.
    for s, t, rate in zip(source, target, found, strict=True):
        at_source = up[s] > 0.99 and rate >= found[source == s].max() - 0.001
        assert at_source or (down[t] > 0.99 and rate >= found[target == t].max() - 0.001)


@pytest.mark.parametrize(
    "more", [[], ["--kill", "0.2"], ["--kill-tracker", "0.5"]], ids=["all live", "two die", "the tracker dies"]
)
def test_a_small_rollout_comes_near_the_limit_with_one_copy_from_upstream(more: list[str]) -> None:
    argv = [sys.executable, str(SIMULATE), "--nodes", "10", "--size", "16", "--chunk", "64", "--json", *more]
    result = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=100).stdout)
    assert 1.0 <= result["p50_ratio"] < (1.6 if more else 1.2)
    assert result["last_ratio"] < (1.6 if more else 1.2)
    assert result["egress_ratio"] < (1.1 if more else 1.01)
