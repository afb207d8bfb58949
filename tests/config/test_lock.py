"""What is installed is pinned: every dependency of the project, by version and hash, and from no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY = re.compile(r"^(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>\S+)(?P<rest>(?:.*\\\n)+.*)$", re.MULTILINE)
ENTRIES = list(ENTRY.finditer(LOCK))
DECLARED = [
    *PROJECT["project"]["dependencies"],
    *(one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra),
    *PROJECT["build-system"]["requires"],
]


@pytest.mark.parametrize("requirement", DECLARED)
def test_every_declared_dependency_is_in_the_lock(requirement):
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    assert re.sub(r"[._-]+", "-", name).lower() in {entry["name"] for entry in ENTRIES}, (
        "make the lock anew: the README says how"
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['name']}-{entry['version']}")
def test_every_entry_of_the_lock_has_hashes_and_only_hashes(entry):
    for line in entry["rest"].split("\n")[1:]:
        assert re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line)


def test_the_lock_has_nothing_but_pinned_entries_and_their_hashes():
    assert ENTRY.sub("", LOCK).strip() == ""


def test_no_address_is_in_the_lock():
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|@ ", LOCK)
