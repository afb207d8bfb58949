"""What a tracker must not forget: join tokens (hashed), who came in with them, and who is shut out. SQLite.

The command line changes the same file while a tracker runs; `changed` says so without reading a row.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pdist.errors import StorageError
from p2pdist.pki import JoinToken, hash_secret

NAME = "tracker.sqlite3"
FOREVER = 2.0**40  # Unix seconds: beyond every certificate
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, number TEXT NOT NULL UNIQUE, labels TEXT NOT NULL, created REAL NOT NULL,
    expires REAL NOT NULL, uses INTEGER, used INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS enrolled (
    hash BLOB NOT NULL, node BLOB NOT NULL, at REAL NOT NULL, PRIMARY KEY (hash, node)
) STRICT;
CREATE TABLE IF NOT EXISTS bans (
    node BLOB PRIMARY KEY, until REAL NOT NULL, reason TEXT NOT NULL, evidence BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is listed. Times in Unix seconds; `uses` None: any number."""

    number: str
    labels: Mapping[str, str]
    created: float
    expires: float
    uses: int | None
    used: int


@dataclass(frozen=True, slots=True)
class Ban:
    """Who is shut out, until when (Unix seconds), why, and what proves it (`trials.Proof`, packed; empty: nothing)."""

    node: bytes
    until: float
    reason: str
    evidence: bytes = b""


class Facts:
    """One open file, or memory without a directory. Its methods raise StorageError when the file can't be used."""

    def __init__(self, directory: Path | None) -> None:
        self._where = str(directory or "memory")
        path = ":memory:"
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                (directory / NAME).touch(mode=0o600)
                path = str(directory / NAME)
            self._base = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{self._where}: {error}") from error
        self._run("PRAGMA journal_mode = WAL")
        self._run("PRAGMA synchronous = NORMAL")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self._run(statement)
        self._version: object = None

    def close(self) -> None:
        """Nothing works afterwards."""
        self._base.close()

    def changed(self) -> bool:
        """Whether another process has changed the file since the last look; True at the first."""
        version = self._run("PRAGMA data_version")[0][0]
        changed, self._version = version != self._version, version
        return changed

    def _run(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        try:
            return self._base.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self._where}: {error}") from error

    # --- tokens ---

    def new_token(
        self, fingerprint: bytes, now: float, lifetime: float, uses: int | None, labels: Mapping[str, str]
    ) -> JoinToken:
        """A token that only its receiver will know. `fingerprint`: of the cluster's authority; seconds."""
        token = JoinToken(fingerprint, secrets.token_bytes(32))
        self._run("DELETE FROM enrolled WHERE hash IN (SELECT hash FROM tokens WHERE expires <= ?)", (now,))
        self._run("DELETE FROM tokens WHERE expires <= ?", (now,))
        self._run(
            "INSERT INTO tokens (hash, number, labels, created, expires, uses) VALUES (?, ?, ?, ?, ?, ?)",
            (token.hashed, token.number, json.dumps(dict(labels)), now, now + lifetime, uses),
        )
        return token

    def tokens(self, now: float) -> list[Token]:
        """Those that still open the door, or did until they were used up."""
        rows = self._run(
            "SELECT number, labels, created, expires, uses, used FROM tokens WHERE expires > ? ORDER BY created", (now,)
        )
        return [Token(row[0], json.loads(str(row[1])), *row[2:]) for row in rows]  # type: ignore[arg-type]  # STRICT

    def revoke(self, number: str) -> bool:
        """The token (by its number) opens nothing any more; False: there is none. Members stay: ban them."""
        return bool(self._run("DELETE FROM tokens WHERE number = ? RETURNING hash", (number,)))

    def redeem(self, secret: bytes, node: bytes, now: float) -> Mapping[str, str] | None:
        """Let `node` in by this token: the labels it gets, or None.

        A node that comes again with the same token (its answer was lost) takes no second use.
        """
        hashed = hash_secret(secret)
        rows = self._run("SELECT labels FROM tokens WHERE hash = ? AND expires > ?", (hashed, now))
        if not rows:
            return None
        if not self._run("SELECT 1 FROM enrolled WHERE hash = ? AND node = ?", (hashed, node)):
            taken = self._run(
                "UPDATE tokens SET used = used + 1 WHERE hash = ? AND (uses IS NULL OR used < uses) RETURNING used",
                (hashed,),
            )
            if not taken:
                return None
            self._run("INSERT INTO enrolled (hash, node, at) VALUES (?, ?, ?)", (hashed, node, now))
        labels: Mapping[str, str] = json.loads(str(rows[0][0]))
        return labels

    # --- bans ---

    def bans(self, now: float) -> dict[bytes, Ban]:
        """Those in force."""
        rows = self._run("SELECT node, until, reason, evidence FROM bans WHERE until > ?", (now,))
        return {row[0]: Ban(*row) for row in rows}  # type: ignore[misc, arg-type]  # STRICT

    def ban(self, ban: Ban) -> None:
        """Shut a node out; replaces an older ban."""
        self._run(
            "INSERT OR REPLACE INTO bans (node, until, reason, evidence) VALUES (?, ?, ?, ?)",
            (ban.node, ban.until, ban.reason, ban.evidence),
        )

    def lift(self, node: bytes) -> bool:
        """Let it in again; False: it wasn't banned."""
        return bool(self._run("DELETE FROM bans WHERE node = ? RETURNING node", (node,)))
