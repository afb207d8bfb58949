"""The tracker's example file says what the tracker's options are, in both directions."""

from __future__ import annotations

from pathlib import Path

from tracker.config import example, load

FILE = Path(__file__).parents[2] / "deploy" / "tracker.example.toml"


def test_the_example_file_is_what_the_declarations_make():
    assert FILE.read_text() == example(), "run python -m tracker --example > deploy/tracker.example.toml"


def test_the_example_as_it_is_changes_nothing():
    assert load(FILE, {}) == load(None, {})
