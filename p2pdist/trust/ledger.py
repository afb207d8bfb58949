"""What was let through, kept over a restart: one SQLite file of the gate's own.

A row that is lost costs another check, never correctness; a row that is wrong must not be believed. So a database
that can't be read is started anew, and every row is checked like what comes from outside.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog

from p2pdist.errors import InputError, StorageError
from p2pdist.oci import Digest, Repository, parse_manifest
from p2pdist.trust.closure import Record

_SCHEMA = 1
_CREATE = """
CREATE TABLE admitted (
  registry TEXT NOT NULL, name TEXT NOT NULL, target TEXT NOT NULL, digest TEXT NOT NULL, parent TEXT,
  media_type TEXT NOT NULL, raw BLOB NOT NULL, generation TEXT NOT NULL, expires REAL NOT NULL,
  PRIMARY KEY (registry, name, target, digest)
) STRICT
"""
MAX_ROWS = 20_000
STALE_SECONDS = 7 * 86_400.0  # rows past their end are kept so long, to be judged again when they are asked for


class Ledger:
    """Records on disk. Its methods block for a disk's time and are run in a worker thread; one at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use `open`."""
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    async def open(cls, path: Path) -> Ledger:
        """The ledger at `path`, made where there is none; StorageError when the place can't be used."""
        return cls(await asyncio.to_thread(_connect, path))

    async def close(self) -> None:
        """Nothing may be asked afterwards."""
        await asyncio.to_thread(self._close)

    async def load(self, now: float) -> list[Record]:
        """Every record that isn't long past its end."""
        return await asyncio.to_thread(self._load, now)

    async def add(self, records: Sequence[Record]) -> None:
        """Keep `records`, in place of those of the same repository, target and digest."""
        await asyncio.to_thread(self._add, records)

    def _close(self) -> None:
        with self._lock:
            self._connection.close()

    def _load(self, now: float) -> list[Record]:
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("DELETE FROM admitted WHERE expires < ?", (now - STALE_SECONDS,))
                    self._connection.execute(
                        "DELETE FROM admitted WHERE rowid IN (SELECT rowid FROM admitted ORDER BY expires DESC"
                        " LIMIT -1 OFFSET ?)",
                        (MAX_ROWS,),
                    )
                rows = self._connection.execute(
                    "SELECT registry, name, target, digest, parent, media_type, raw, generation, expires FROM admitted"
                ).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"the record of accepted images can't be read: {error}") from error
        return [record for row in rows if (record := _record(row)) is not None]

    def _add(self, records: Sequence[Record]) -> None:
        rows = [
            (
                *(one.repository.registry, one.repository.name, one.target, str(one.digest)),
                *(None if one.parent is None else str(one.parent), one.media_type, one.raw),
                *(one.generation, one.expires),
            )
            for one in records
        ]
        with self._lock:
            try:
                with self._connection:
                    self._connection.executemany(
                        "INSERT OR REPLACE INTO admitted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
                    )
            except sqlite3.Error as error:
                raise StorageError(f"the record of accepted images can't be written: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        try:
            return _prepared(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            structlog.get_logger("p2pdist.trust").warning("the record of accepted images is broken: starting anew")
            for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                name.unlink(missing_ok=True)
            return _prepared(path)
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{path} can't be used for the record of accepted images: {error}") from error


def _prepared(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA:
            with connection:
                connection.execute("DROP TABLE IF EXISTS admitted")
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        connection.execute("SELECT count(*) FROM admitted").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _record(row: tuple[str, str, str, str, str | None, str, bytes, str, float]) -> Record | None:
    registry, name, target, digest_text, parent, media_type, raw, generation, expires = row
    try:
        digest = Digest.parse(digest_text)
        manifest = parse_manifest(raw, media_type, digest.algorithm)
        if manifest.digest != digest:
            return None
        above = None if parent is None else Digest.parse(parent)
        return Record.of(Repository(registry, name), target, manifest, above, generation, expires)
    except (InputError, TypeError):
        return None
