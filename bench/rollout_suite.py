"""The cases of the suite with their goals, and the short one that CI runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.process import LabError
from rollout_model import Settings
from rollout_report import medians, print_rollout, settings_as_dict, strict_json
from rollout_run import run

MIB = 1 << 20
_LIMIT_64_AT_50 = 64 * MIB * 8e-6 / 50  # seconds


@dataclass(frozen=True)
class Case:
    """`goals`: figure of the report -> the most it may be."""

    name: str
    settings: Settings
    goals: dict[str, float] = field(default_factory=dict)


def _goals(p50: float, last: float, egress: float, **more: float) -> dict[str, float]:
    return {"p50_ratio": p50, "last_ratio": last, "egress_ratio": egress, **more}


def cases() -> list[Case]:
    """Issue 4's table."""
    base = Settings()
    half = _LIMIT_64_AT_50 / 2
    fast = Settings(nodes=6, up=200, down=200, registry=200, size=256 * MIB)
    wide = Settings(nodes=24, up=25, down=25, registry=25, size=32 * MIB)
    return [
        Case("together", base, _goals(1.10, 1.12, 1.03)),
        Case("layers", replace(base, layers=8), _goals(1.12, 1.15, 1.05)),
        Case("killed", replace(base, kill=((4, half), (9, half))), _goals(1.12, 1.18, 1.08)),
        Case(
            "stopped",
            replace(base, stop=((4, half), (9, half))),
            {"p50_ratio": 1.15, "last_over_limit_seconds": 3.0, "egress_ratio": 1.08},
        ),
        Case("tracker-killed", replace(base, kill_tracker=half), _goals(1.20, 1.22, 1.05)),
        Case("spread", replace(base, start="poisson:20"), _goals(1.12, 1.20, 1.03)),
        Case(
            "slow",
            replace(base, slow=((4, 0.25), (9, 0.25))),
            _goals(1.15, 1.18, 1.04, slow_p50_ratio=1.08, slow_last_ratio=1.10),
        ),
        Case("fast-links", fast, _goals(1.12, 1.15, 1.03, cpu_seconds_per_gib=8.0, tracker_cpu_share=0.01)),
        Case("wide", wide, _goals(1.15, 1.18, 1.04)),
        Case("registry-4x", replace(base, registry=200), _goals(1.15, 1.18, 1.05)),
        Case("registry-quarter", replace(base, registry=12.5), _goals(1.15, 1.18, 1.05)),
        Case("late", replace(base, late=True), {"late_ratio": 1.12}),
    ]


def run_suite(runs: int, base: Path | None, *, as_json: bool, only: Sequence[str], base_settings: Settings) -> int:
    """Every case (or those whose name contains one of `only`), medians of `runs`. 1 if a goal is missed."""
    chosen = [case for case in cases() if not only or any(word in case.name for word in only)]
    if not chosen:
        raise LabError(f"no case is called {' or '.join(only)}; there are {', '.join(case.name for case in cases())}")
    rows = [_case(_with_tables(case, base_settings), runs, base, quiet=as_json) for case in chosen]
    if as_json:
        print(strict_json({"cases": rows, "load": os.getloadavg()}))
    else:
        print_table(rows)
    return 0 if all(row["good"] for row in rows) else 1


def run_short(base: Path | None, *, as_json: bool, base_settings: Settings) -> int:
    """4 nodes, a few seconds each: guards egress and correctness, not time, which a shared machine can't promise."""
    small = Settings(nodes=4, up=100, down=100, registry=100, layers=2, size=16 * MIB)
    half = 16 * MIB * 8e-6 / 100 / 2
    short = [
        Case("short", small, {"egress_ratio": 1.10}),
        Case("short-killed", replace(small, kill=((3, half),)), {"egress_ratio": 1.25}),
        Case("short-late", replace(small, late=True), {"egress_ratio": 1.10}),
    ]
    rows = [_case(_with_tables(case, base_settings), 1, base, quiet=as_json) for case in short]
    if as_json:
        print(strict_json({"cases": rows, "load": os.getloadavg()}))
    else:
        print_table(rows)
    return 0 if all(row["good"] for row in rows) else 1


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'case':18} {'figure':26} {'measured':>9} {'goal':>8}")
    for row in rows:
        for figure, goal in row["goals"].items():
            verdict = "" if row[figure] <= goal else "  MISSED"
            print(f"{row['case']:18} {figure:26} {row[figure]:9.3f} {goal:8.3f}{verdict}")
        if not row["verified"] or row["errors"]:
            print(f"{row['case']:18} {'bytes':26} {'WRONG' if not row['verified'] else 'ERRORS':>9}  {row['errors']}")


def _case(case: Case, runs: int, base: Path | None, *, quiet: bool) -> dict[str, Any]:
    results = []
    for number in range(runs):
        results.append(run(case.settings, base))
        if not quiet:
            print(f"[{case.name}] ", end="")
            print_rollout(case.settings, results[-1], number + 1, runs, nodes=False)
    row = medians(results)
    good = row["verified"] and not row["errors"] and all(row[f] <= goal for f, goal in case.goals.items())
    return {"case": case.name, "goals": case.goals, "good": good, "settings": settings_as_dict(case.settings), **row}


def _with_tables(case: Case, given: Settings) -> Case:
    """What the command line says about configuration and logs holds for every case."""
    logs = given.keep_logs / case.name if given.keep_logs is not None else None
    return replace(case, settings=replace(case.settings, agent=given.agent, tracker=given.tracker, keep_logs=logs))
