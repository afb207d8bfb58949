"""What the suite makes of measurements: the table, the exit status, strict JSON."""

from __future__ import annotations

import json
import math

import pytest
import rollout_suite
from lab.process import LabError
from rollout_model import NodeResult, Result, Sample, Settings


def measured(settings: Settings, *, slowness: float = 1.05, copies: float = 1.01, verified: bool = True) -> Result:
    """A rollout in which every survivor took `slowness` times its limit."""
    dead = {number for number, _ in (*settings.kill, *settings.stop)}
    nodes = [
        NodeResult(
            node=number,
            offset=link.offset,
            limit=settings.limits[number],
            seconds=None if number in dead else slowness * settings.limits[number],
            layer_seconds=(),
            error="",
            cpu=0.1,
            peak_rss=1,
            received=settings.size,
            transfer={"bytes_redundant": 0},
        )
        for number, link in settings.links.items()
    ]
    late = slowness if settings.late else None
    sent = round(copies * settings.size)
    return Result(settings, nodes, sent, sent, 0.001, 1, verified, late, 0.5, [Sample(0.0, [0] * len(nodes), 0)])


def suite(monkeypatch: pytest.MonkeyPatch, *, as_json: bool = False, only: tuple[str, ...] = (), **how: object) -> int:
    monkeypatch.setattr(rollout_suite, "run", lambda settings, base: measured(settings, **how))
    return rollout_suite.run_suite(3, None, as_json=as_json, only=only, base_settings=Settings())


def test_every_goal_met_is_status_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite(monkeypatch) == 0
    assert "MISSED" not in capsys.readouterr().out


@pytest.mark.parametrize("how", [{"slowness": 1.5}, {"copies": 1.5}])
def test_a_missed_goal_is_status_1_and_stands_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: dict[str, object]
) -> None:
    assert suite(monkeypatch, **how) == 1
    assert "MISSED" in capsys.readouterr().out


def test_wrong_bytes_are_never_good_however_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite(monkeypatch, verified=False) == 1
    assert "WRONG" in capsys.readouterr().out


def test_as_json_every_case_has_its_goals_and_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite(monkeypatch, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)["cases"]
    assert len(rows) == len(rollout_suite.cases())
    for row in rows:
        assert set(row["goals"]) <= set(row), row["case"]
        assert row["good"] is True


def test_a_rollout_without_survivors_is_a_failure_in_strict_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite(monkeypatch, as_json=True, only=("together",), slowness=math.inf) == 1
    text = capsys.readouterr().out
    assert "Infinity" not in text
    assert json.loads(text)["cases"][0]["p50_ratio"] is None


def test_a_case_that_does_not_exist_is_named_with_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="no case is called nothing; there are together"):
        suite(monkeypatch, only=("nothing",))
