"""docs/security.md names a test for every claim; here it is looked whether those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "security.md"
NAMED = re.compile(r"`([a-z_]+/test_\w+\.py)`([^`|);\n]*)")  # a file, and parts of names behind it


def claims(text: str) -> list[str]:
    """The rows of its tables, without heads and rules."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not re.fullmatch(r"[-|]+", row) and not row.endswith("| test |")]


def broken(text: str) -> list[str]:
    """Claims without a test, and tests that aren't there."""
    found = [f"no test is named: {row}" for row in claims(text) if not NAMED.search(row)]
    for file, names in NAMED.findall(text):
        path = TESTS / file
        if not path.is_file():
            found.append(f"no such file: {file}")
            continue
        source = path.read_text()
        functions = " ".join(re.findall(r"def (test_\w+)", source))
        wanted = [name for part in names.split(",") if (name := part.strip(" .")) and " " not in name]
        missing = (n for n in wanted if n.strip("[]") not in (source if n.startswith("[") else functions))
        found += [f"no such test: {file} {name}" for name in missing]
    return found


def test_every_claim_names_a_test_and_every_test_that_is_named_exists() -> None:
    text = PAGE.read_text()
    assert len(claims(text)) > 20
    assert broken(text) == []


@pytest.mark.parametrize(
    "row",
    [
        "| Nothing leaks | |",
        "| Nothing leaks | `hostile/test_hostile_nowhere.py` nothing_leaks |",
        "| Nothing leaks | `hostile/test_hostile_claims.py` nothing_leaks |",
        "| Nothing leaks | `hostile/test_hostile_doors.py` peer_port_gives_nothing_to, nothing_leaks |",
        "| Nothing leaks | `hostile/test_hostile_doors.py` [nothing_leaks] |",
    ],
)
def test_a_claim_whose_test_is_missing_is_found(row: str) -> None:
    assert broken(row)
