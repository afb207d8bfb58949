"""The corpus of real signatures through the agent's own client and gate, one test per case; and its runner.

The corpus is found by P2PDIST_CORPUS, or beside the repository. Where there is none, this fails: a gate that was
never held against real signatures is not tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "tests" / "corpus" / "run.py"
FOLDER = Path(os.environ.get("P2PDIST_CORPUS") or ROOT.parent / "shared" / "signature-corpus")

sys.path.insert(0, str(RUNNER.parent))
import run  # noqa: E402  # the runner is a script, not a package's module

MISSING = f"no signature corpus at {FOLDER}: set P2PDIST_CORPUS to a folder in its format"


def cases() -> list[Any]:
    if not (FOLDER / "cases.json").exists():
        return [pytest.param(None, id="corpus is missing")]
    return [pytest.param(case, id=case["id"]) for case in run.load_cases(FOLDER)]


@pytest.mark.parametrize("case", cases())
async def test_corpus(case: dict[str, Any] | None) -> None:
    assert case is not None, MISSING
    result = await run.run_case(FOLDER, case)
    assert result.passed, "; ".join((*result.problems, result.reason))


def test_the_runner_says_how_many_passed_and_failed_by_line_and_status(tmp_path: Path) -> None:
    assert FOLDER.exists(), MISSING
    passing = subprocess.run(
        [sys.executable, RUNNER, FOLDER, "--level", "gpg"], capture_output=True, text=True, check=False, timeout=60
    )
    assert passing.returncode == 0, passing.stdout
    assert passing.stdout.splitlines()[-1].endswith(" passed, 0 failed")
    # The same cases with the opposite expected: every one fails, and the runner says so.
    for name in ("serve.py", "policies", "states", "blobs", "trust", "lookaside"):
        (tmp_path / name).symlink_to(FOLDER / name)
    text = (FOLDER / "cases.json").read_text()
    swapped = text.replace('"accept"', '"?"').replace('"reject"', '"accept"').replace('"?"', '"reject"')
    (tmp_path / "cases.json").write_text(swapped)
    failing = subprocess.run(
        [sys.executable, RUNNER, tmp_path, "--level", "gpg"], capture_output=True, text=True, check=False, timeout=60
    )
    assert failing.returncode == 1
    assert failing.stdout.splitlines()[-1].startswith("0 passed, ")


def test_a_folder_without_a_corpus_is_an_error_with_a_reason(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, RUNNER, tmp_path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "no signature corpus" in done.stderr
