"""The state of a tracker that is alone: one SQLite file, or memory.

Its calls take some tens of microseconds and run in the event loop. Command lines, and other trackers on this host,
may use the same file at the same time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from p2pdist.errors import StorageError
from tracker.state.protocol import Leader

NAME = "tracker.sqlite3"
BUSY = 1.0  # seconds that a call waits for another process's
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    tab TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, expires REAL, PRIMARY KEY (tab, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ends ON records (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS version (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO version VALUES (1, 0);
CREATE TABLE IF NOT EXISTS leader (
    one INTEGER PRIMARY KEY CHECK (one = 1), owner TEXT NOT NULL, address TEXT NOT NULL, term INTEGER NOT NULL,
    until REAL NOT NULL
) STRICT
"""
_LIVE = "(expires IS NULL OR expires > :now)"


class LocalState:
    """See `State`. `open` makes one."""

    def __init__(self, base: sqlite3.Connection, where: str, clock: Callable[[], float]) -> None:
        self._base = base
        self._where = where
        self._clock = clock

    @classmethod
    def open(cls, directory: Path | None, clock: Callable[[], float] = time.time) -> LocalState:
        """The state kept in `directory`, or in memory without one.

        Raises:
            StorageError: the file can't be made or isn't ours.
        """
        where, path = str(directory or "memory"), ":memory:"
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                (directory / NAME).touch(mode=0o600)
                path = str(directory / NAME)
            base = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{where}: {error}") from error
        state = cls(base, where, clock)
        try:
            state._run("PRAGMA journal_mode = WAL")
            state._run("PRAGMA synchronous = NORMAL")
            for statement in _SCHEMA.split(";"):
                state._run(statement)
        except StorageError:
            base.close()
            raise
        return state

    def _run(self, statement: str, **values: object) -> list[tuple[object, ...]]:
        try:
            return self._base.execute(statement, values | {"now": self._clock()}).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self._where}: {error}") from error

    def _change(self, statement: str, **values: object) -> list[tuple[object, ...]]:
        """One statement and the count of changes, together or not at all."""
        self._run("BEGIN IMMEDIATE")
        try:
            self._run("DELETE FROM records WHERE expires <= :now")
            rows = self._run(statement, **values)
            if rows:
                self._run("UPDATE version SET number = number + 1")
            self._run("COMMIT")
        except BaseException:
            if self._base.in_transaction:
                self._base.rollback()
            raise
        return rows

    async def get(self, table: str, key: str) -> bytes | None:
        """See `State`."""
        rows = self._run(f"SELECT value FROM records WHERE tab = :tab AND key = :key AND {_LIVE}", tab=table, key=key)
        return _bytes(rows[0][0]) if rows else None

    async def all(self, table: str) -> dict[str, bytes]:
        """See `State`."""
        rows = self._run(f"SELECT key, value FROM records WHERE tab = :tab AND {_LIVE}", tab=table)
        return {str(key): _bytes(value) for key, value in rows}

    async def put(self, table: str, key: str, value: bytes, expires: float | None = None) -> None:
        """See `State`."""
        statement = "INSERT OR REPLACE INTO records VALUES (:tab, :key, :value, :expires) RETURNING 1"
        self._change(statement, tab=table, key=key, value=value, expires=expires)

    async def create(self, table: str, key: str, value: bytes, expires: float | None = None) -> bool:
        """See `State`."""
        statement = "INSERT OR IGNORE INTO records VALUES (:tab, :key, :value, :expires) RETURNING 1"
        return bool(self._change(statement, tab=table, key=key, value=value, expires=expires))

    async def replace(self, table: str, key: str, old: bytes, new: bytes, expires: float | None = None) -> bool:
        """See `State`."""
        statement = (
            "UPDATE records SET value = :new, expires = :expires WHERE tab = :tab AND key = :key AND value = :old "
            "RETURNING 1"
        )
        return bool(self._change(statement, tab=table, key=key, old=old, new=new, expires=expires))

    async def remove(self, table: str, key: str) -> bool:
        """See `State`."""
        return bool(self._change("DELETE FROM records WHERE tab = :tab AND key = :key RETURNING 1", tab=table, key=key))

    async def version(self) -> int:
        """See `State`."""
        return _int(self._run("SELECT number FROM version")[0][0])

    async def lead(self, owner: str, address: str, lifetime: float) -> Leader:
        """See `State`."""
        rows = self._run(
            "INSERT INTO leader VALUES (1, :owner, :address, 1, :now + :lifetime) ON CONFLICT (one) DO UPDATE SET "
            "term = CASE WHEN owner = :owner AND until > :now THEN term ELSE term + 1 END, "
            "owner = :owner, address = :address, until = :now + :lifetime "
            "WHERE owner = :owner OR until <= :now RETURNING owner, address, term",
            owner=owner,
            address=address,
            lifetime=lifetime,
        ) or self._run("SELECT owner, address, term FROM leader")
        return Leader(str(rows[0][0]), str(rows[0][1]), _int(rows[0][2]))

    async def resign(self, owner: str) -> None:
        """See `State`."""
        self._run("UPDATE leader SET until = 0 WHERE owner = :owner", owner=owner)

    async def close(self) -> None:
        """See `State`."""
        self._base.close()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)  # the column is a BLOB of a STRICT table
    return value


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
