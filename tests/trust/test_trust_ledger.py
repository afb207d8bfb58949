"""What was let through: bounded in memory, kept on disk, believed only as far as it holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from trust_kit import NOW, REPOSITORY, MemorySource, image, index

from p2pdist.errors import StorageError
from p2pdist.oci import Repository
from p2pdist.trust import Enforcement, OpenGate, TrustSettings, closure, open_gate
from p2pdist.trust.closure import Closure, Record
from p2pdist.trust.ledger import STALE_SECONDS, Ledger

IMAGE, T = image(), NOW.timestamp()


def record(text: str = "hello", expires: float = T + 100, generation: str = "g") -> Record:
    return Record.of(REPOSITORY, text, image(text), None, generation, expires)


async def test_records_are_the_same_after_closing_and_opening(tmp_path: Path) -> None:
    both = index(IMAGE)
    kept = [record(), Record.of(REPOSITORY, str(IMAGE.digest), IMAGE, both.digest, "g", T + 5)]
    ledger = await Ledger.open(tmp_path / "l.sqlite")
    await ledger.add(kept)
    await ledger.add(kept[:1])
    await ledger.close()
    ledger = await Ledger.open(tmp_path / "l.sqlite")
    assert sorted(await ledger.load(T), key=lambda one: one.expires) == sorted(kept, key=lambda one: one.expires)
    assert await ledger.load(T + 50 + STALE_SECONDS) == kept[:1], "long past its end"
    await ledger.close()


async def test_a_row_that_was_tampered_with_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    ledger = await Ledger.open(path)
    await ledger.add([record(), record("other")])
    await ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE admitted SET raw = ? WHERE target = 'hello'", (image("evil").raw,))
        connection.execute("UPDATE admitted SET name = '../..' WHERE target = 'other'")
    connection.close()
    ledger = await Ledger.open(path)
    assert await ledger.load(T) == []
    await ledger.close()


async def test_a_database_of_another_version_is_started_anew(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE admitted (x)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    ledger = await Ledger.open(path)
    await ledger.add([record()])
    assert len(await ledger.load(T)) == 1
    await ledger.close()


async def test_a_place_that_can_not_be_used_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't be used"):
        await Ledger.open(tmp_path / "nowhere" / "l.sqlite")


def test_of_too_many_records_the_ones_that_end_first_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closure, "MAX_RECORDS", 10)
    kept = Closure("g")
    for number in range(25):
        kept.add(record(str(number), T + 100 + number), T)
    assert not kept.has_manifest(REPOSITORY, image("0").digest, T)
    assert kept.has_manifest(REPOSITORY, image("24").digest, T)
    assert kept.has_blob(REPOSITORY, image("24").config.digest, T)


def test_records_of_another_policy_or_repository_or_past_their_end_let_nothing_through() -> None:
    kept = Closure("g", [record(), record("other", generation="older")])
    assert kept.has_manifest(REPOSITORY, IMAGE.digest, T)
    assert not kept.has_manifest(REPOSITORY, image("other").digest, T)
    assert not kept.has_manifest(Repository("registry.test", "app/two"), IMAGE.digest, T)
    assert not kept.has_manifest(REPOSITORY, IMAGE.digest, T + 100)
    assert not kept.has_blob(Repository("registry.test", "app/two"), IMAGE.config.digest, T)


async def test_off_is_an_explicit_gate_that_says_so(tmp_path: Path) -> None:
    gate = await open_gate(TrustSettings(Enforcement.OFF, None, tmp_path / "l.sqlite"), MemorySource())
    assert isinstance(gate, OpenGate)
    await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
    gate.admit_blob(REPOSITORY, IMAGE.config.digest)
    await gate.revive_blob(REPOSITORY, IMAGE.config.digest)
    await gate.prefetch(REPOSITORY, "1.0", IMAGE.digest)
    assert gate.status().enforcement is Enforcement.OFF
    await gate.close()
    assert not (tmp_path / "l.sqlite").exists()
