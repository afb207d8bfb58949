"""What the command line of the rollout bench means, and how it says that it can't run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import rollout
from rollout_suite import cases

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_half_time_is_meant_of_the_fluid_limit() -> None:
    chosen = rollout._settings(rollout._parser().parse_args(["--kill", "2@50%,3@1.5", "--kill-tracker", "25%"]))
    assert chosen.kill == ((2, pytest.approx(5.37, abs=0.01)), (3, 1.5))
    assert chosen.kill_tracker == pytest.approx(2.684, abs=0.01)


def test_a_rate_given_once_holds_for_every_link_unless_told_otherwise() -> None:
    chosen = rollout._settings(rollout._parser().parse_args(["--rate", "20", "--up", "5", "--registry-rate", "80"]))
    assert (chosen.up, chosen.down, chosen.registry) == (5, 20, 80)


def test_lines_of_the_agents_configuration_reach_their_tables() -> None:
    chosen = rollout._settings(
        rollout._parser().parse_args(["--agent", "log.level='debug'", "--agent", "log.format='json'"])
    )
    assert chosen.agent == {"log": {"level": "debug", "format": "json"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kill", "13@1"],
        ["--kill", "0@1"],
        ["--kill", "x"],
        ["--slow", "3@0.5"],
        ["--agent", "level debug"],
        ["--start", "never"],
        ["--size", "0.0001"],
    ],
)
def test_a_wrong_option_ends_with_a_clear_message_and_status_2(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "rollout.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rollout.py: ") and "Traceback" not in done.stderr


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rollout.main([]) == 2
    assert "run it as root" in capsys.readouterr().err


def test_the_suite_has_every_case_of_the_table_and_a_goal_for_each() -> None:
    assert len(cases()) == 12
    assert all(case.goals for case in cases())
    assert len({case.name for case in cases()}) == len(cases())
