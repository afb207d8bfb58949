"""The state of a tracker that is alone: what is kept, and what is said when it can't be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pdist.errors import StorageError
from tracker.state import LocalState


async def test_a_file_keeps_records_over_a_restart_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    state = LocalState.open(directory)
    await state.put("t", "k", b"v")
    leader = await state.lead("a", "", 60.0)
    await state.close()
    again = LocalState.open(directory)
    assert await again.get("t", "k") == b"v"
    assert (await again.lead("b", "", 60.0)).term == leader.term
    await again.close()
    assert os.stat(directory / "tracker.sqlite3").st_mode & 0o077 == 0


async def test_memory_is_nobody_elses() -> None:
    one, other = LocalState.open(None), LocalState.open(None)
    await one.put("t", "k", b"v")
    assert await other.all("t") == {}
    await one.close()
    await other.close()


async def test_expiry_follows_the_clock() -> None:
    now = 1000.0
    state = LocalState.open(None, lambda: now)
    await state.put("t", "k", b"v", 1010.0)
    now = 1009.9
    assert await state.get("t", "k") == b"v"
    now = 1010.0
    assert await state.get("t", "k") is None
    await state.close()


def test_a_file_that_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "tracker.sqlite3").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(StorageError, match=str(tmp_path)):
        LocalState.open(tmp_path)


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        LocalState.open(tmp_path / "file" / "data")
