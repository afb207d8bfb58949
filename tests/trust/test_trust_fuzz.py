"""No crash, no hang, no acceptance: every parser under hypothesis and under a coverage-guided fuzzer, for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzz_targets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = os.environ.get("P2PDIST_FUZZ_SECONDS", "15")  # of the coverage-guided one
SEEDS = fuzz_targets.seeds()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FUZZ = settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@FUZZ
@given(st.integers(0, len(fuzz_targets.TARGETS) - 1), st.binary(max_size=2000))
def test_noise(number: int, data: bytes) -> None:
    fuzz_targets.run(bytes([number]) + data)


@FUZZ
@given(st.sampled_from(SEEDS), st.data())
def test_valid_input_with_bytes_changed(seed: bytes, data: st.DataObject) -> None:
    changed = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(1, len(changed) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip":
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut" and at > 1:
            del changed[at:]
        elif kind == "insert":
            changed[at:at] = data.draw(st.binary(max_size=8))
        else:
            changed[at:at] = changed[at : at + 64]
        if len(changed) < 2:
            break
    fuzz_targets.run(bytes(changed))


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += _nodes(inner, (*path, key))
    return found


def _json_seeds() -> list[bytes]:
    return [seed for seed in SEEDS if seed[1:2] == b"{"]


@FUZZ
@given(st.sampled_from(_json_seeds()), JSON, st.data())
def test_valid_json_with_one_value_exchanged(seed: bytes, value: Any, data: st.DataObject) -> None:
    document = json.loads(seed[1:])
    path = data.draw(st.sampled_from(_nodes(document)))
    if not path:
        document = value
    else:
        place = document
        for key in path[:-1]:
            place = place[key]
        if data.draw(st.booleans()):
            place[path[-1]] = value
        else:
            del place[path[-1]]
    fuzz_targets.run(seed[:1] + json.dumps(document).encode())


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_what_is_valid_for_another_image_is_refused_and_no_crash(seed: bytes) -> None:
    fuzz_targets.run(seed)


if sys.version_info < (3, 13):  # atheris is built for these

    @pytest.mark.timeout(300)
    def test_coverage_guided(tmp_path: Path) -> None:
        script = Path(__file__).with_name("fuzz_coverage.py")
        done = subprocess.run(
            [sys.executable, script, SECONDS, tmp_path],
            capture_output=True,
            text=True,
            check=False,
            timeout=float(SECONDS) + 120,
            errors="replace",
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
        assert "DONE" in done.stderr or "Done" in done.stderr, done.stderr[-2000:]
