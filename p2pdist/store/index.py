"""What is known of the blobs: a mirror in memory for every read, and SQLite behind it for the next start.

The files are the truth. A row remembers a proof: this file, by its stamp, had this digest at that time. So a write that
fails or is lost in a crash costs a hash at the next start, never a blob, and nobody waits for one: rows are written by
one thread of its own, in the order they were given. SQLite in WAL mode, `synchronous=NORMAL`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import structlog

from p2pdist.errors import DiskFull, InvalidDigest, StorageError
from p2pdist.oci import Digest
from p2pdist.store.blob import Stamp

MAX_TAGS = 65_536  # remembered tags; the one set longest ago makes room
USED_EVERY = 60.0  # seconds: how exact "last used" is on disk

_VERSION = 2
_SCHEMA = f"""
BEGIN;
CREATE TABLE blobs (digest TEXT PRIMARY KEY, inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, verified REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE pins (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE notes (digest TEXT, repository TEXT, media_type TEXT NOT NULL, PRIMARY KEY (digest, repository))
    WITHOUT ROWID;
CREATE TABLE tags (repository TEXT, tag TEXT, digest TEXT NOT NULL, seen REAL NOT NULL, PRIMARY KEY (repository, tag))
    WITHOUT ROWID;
CREATE TABLE pulls (digest TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT})
_log = structlog.get_logger(__name__)


class _Damaged(Exception):
    """The database can't be believed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One proved blob. `verified` and `used`: seconds since the epoch, of the last full hash and the last opening."""

    digest: Digest
    stamp: Stamp
    verified: float
    used: float


class Index:
    """Reads are look-ups in memory; writes change memory at once and the database soon after. Safe between threads."""

    def __init__(self, database: sqlite3.Connection, was_lost: bool) -> None:
        self.was_lost = was_lost
        self._database = database
        self._lock = threading.Lock()
        self.bytes = 0  # of all blobs
        self._entries: dict[Digest, Entry] = {}
        self._used_on_disk: dict[Digest, float] = {}
        self._pins: set[Digest] = set()
        self._notes: dict[Digest, dict[str, str]] = {}
        self._tags: dict[tuple[str, str], tuple[str, float]] = {}
        self._pulls: dict[Digest, float] = {}
        self._queue: list[tuple[str, tuple[object, ...]]] = []
        self._closed = False
        self._writer = ThreadPoolExecutor(1, "store-index")

    @classmethod
    def open(cls, path: Path) -> Index:
        """Reads the database, or starts an empty one if it is missing or damaged (`was_lost`). Blocking.

        Raises:
            DiskFull, StorageError: it can neither be used nor be replaced.
        """
        with _sqlite_errors(path):
            was_lost = not path.exists()
            try:
                return cls._load(path, was_lost)
            except (_Damaged, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.DatabaseError) and not _is_damage(error):
                    raise
                _log.error("index damaged; it will be rebuilt from the blobs", path=str(path), error=str(error))
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return cls._load(path, True)

    @classmethod
    def _load(cls, path: Path, was_lost: bool) -> Index:
        database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0 and not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
                database.executescript(_SCHEMA)
                was_lost = True
            elif version != _VERSION:
                raise _Damaged(f"version {version}, wanted {_VERSION}")
            elif (verdict := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _Damaged(verdict)
            index = cls(database, was_lost)
            try:
                index._read()
            except BaseException:
                index._writer.shutdown()
                raise
            return index
        except BaseException:
            database.close()
            raise

    def _read(self) -> None:
        try:
            for text, inode, size, mtime, ctime, verified, used in self._database.execute("SELECT * FROM blobs"):
                digest = Digest.parse(text)
                self._entries[digest] = Entry(digest, Stamp(inode, size, mtime, ctime), float(verified), float(used))
                self.bytes += int(size)
                self._used_on_disk[digest] = float(used)
            self._pins = {Digest.parse(text) for (text,) in self._database.execute("SELECT digest FROM pins")}
            for text, repository, media_type in self._database.execute("SELECT * FROM notes"):
                self._notes.setdefault(Digest.parse(text), {})[repository] = media_type
            rows = self._database.execute("SELECT repository, tag, digest, seen FROM tags ORDER BY seen")
            self._tags = {(repository, tag): (digest, float(seen)) for repository, tag, digest, seen in rows}
            self._pulls = {Digest.parse(text): float(at) for text, at in self._database.execute("SELECT * FROM pulls")}
        except (InvalidDigest, TypeError, ValueError, AttributeError) as error:
            raise _Damaged(str(error)) from error

    # --- blobs

    def get(self, digest: Digest) -> Entry | None:
        return self._entries.get(digest)

    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries.values())

    def add(self, entry: Entry) -> None:
        """The file was proved just now."""
        stamp = entry.stamp
        with self._lock:
            before = self._entries.get(entry.digest)
            self.bytes += stamp.size - (before.stamp.size if before else 0)
            self._entries[entry.digest] = entry
            self._used_on_disk[entry.digest] = entry.used
            self._write(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (str(entry.digest), *astuple(stamp), entry.verified, entry.used),
            )

    def prove(self, digest: Digest, stamp: Stamp, now: float) -> None:
        """A blob that is there was hashed again."""
        self.add(replace(self._entries[digest], stamp=stamp, verified=now))

    def touch(self, digest: Digest, now: float) -> None:
        """The blob was used."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return
            self._entries[digest] = replace(entry, used=now)
            if abs(now - self._used_on_disk[digest]) >= USED_EVERY:
                self._used_on_disk[digest] = now
                self._write("UPDATE blobs SET used = ? WHERE digest = ?", (now, str(digest)))

    def drop(self, digest: Digest) -> None:
        """The blob and what was noted of it are gone; a pin stays."""
        with self._lock:
            self._used_on_disk.pop(digest, None)
            if (entry := self._entries.pop(digest, None)) is not None:
                self.bytes -= entry.stamp.size
                self._write("DELETE FROM blobs WHERE digest = ?", (str(digest),))
            if self._notes.pop(digest, None) is not None:
                self._write("DELETE FROM notes WHERE digest = ?", (str(digest),))
            if self._pulls.pop(digest, None) is not None:
                self._write("DELETE FROM pulls WHERE digest = ?", (str(digest),))

    # --- pins, notes, tags, pulls

    def pulled(self, digest: Digest, now: float) -> None:
        """A daemon asked for this manifest."""
        with self._lock:
            before = self._pulls.get(digest)
            if digest not in self._entries or (before is not None and abs(now - before) < USED_EVERY):
                return
            self._pulls[digest] = now
            self._write("INSERT OR REPLACE INTO pulls VALUES (?, ?)", (str(digest), now))

    def pulls(self) -> dict[Digest, float]:
        """Manifests that a daemon asked for, and when it last did."""
        with self._lock:
            return dict(self._pulls)

    def noted(self) -> dict[Digest, dict[str, str]]:
        """Everything that was noted: repository to media type, by digest."""
        with self._lock:
            return {digest: dict(notes) for digest, notes in self._notes.items()}

    def tags(self) -> dict[tuple[str, str], str]:
        """The digest that each tag was last seen to name."""
        with self._lock:
            return {name: digest for name, (digest, _) in self._tags.items()}

    def pinned(self) -> frozenset[Digest]:
        with self._lock:
            return frozenset(self._pins)

    def pin(self, digest: Digest) -> None:
        with self._lock:
            self._pins.add(digest)
            self._write("INSERT OR IGNORE INTO pins VALUES (?)", (str(digest),))

    def unpin(self, digest: Digest) -> None:
        with self._lock:
            self._pins.discard(digest)
            self._write("DELETE FROM pins WHERE digest = ?", (str(digest),))

    def note(self, digest: Digest, repository: str, media_type: str) -> None:
        with self._lock:
            known = self._notes.setdefault(digest, {})
            if known.get(repository) != media_type:
                known[repository] = media_type
                self._write("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (str(digest), repository, media_type))

    def notes(self, digest: Digest) -> dict[str, str]:
        """Repository to media type."""
        with self._lock:
            return dict(self._notes.get(digest, ()))

    def keep_notes(self, digests: Iterable[Digest]) -> None:
        """Forgets the notes of everything else."""
        kept = set(digests)
        with self._lock:
            for digest in [digest for digest in self._notes if digest not in kept]:
                del self._notes[digest]
                self._write("DELETE FROM notes WHERE digest = ?", (str(digest),))

    def tag(self, repository: str, tag: str) -> tuple[str, float] | None:
        return self._tags.get((repository, tag))

    def set_tag(self, repository: str, tag: str, digest: str, seen: float) -> None:
        with self._lock:
            self._tags.pop((repository, tag), None)  # so that the order of the dict is the order of setting
            self._tags[repository, tag] = digest, seen
            self._write("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", (repository, tag, digest, seen))
            if len(self._tags) > MAX_TAGS:
                oldest = next(iter(self._tags))
                del self._tags[oldest]
                self._write("DELETE FROM tags WHERE repository = ? AND tag = ?", oldest)

    # --- the database

    def flush(self) -> None:
        """Waits until all that was given is written. Blocking."""
        self._writer.submit(self._drain).result()

    def close(self) -> None:
        """Writes the rest and closes the database. Blocking."""
        with self._lock:
            self._closed = True
        self._writer.shutdown()
        self._database.close()

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        """Called with the lock held. StorageError: it is closed."""
        if self._closed:
            raise StorageError("the index is closed")
        self._queue.append((statement, values))
        if len(self._queue) == 1:
            self._writer.submit(self._drain)

    def _drain(self) -> None:
        with self._lock:
            batch, self._queue = self._queue, []
        if not batch:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                for statement, values in batch:
                    self._database.execute(statement, values)
        except sqlite3.Error as error:
            # Nothing is lost but time: what isn't in the index is hashed again at the next start.
            _log.error("index not written", rows=len(batch), error=str(error))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF) in _DAMAGE


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise DiskFull(f"no room to open the index {path}; free some space on its file system") from error
        raise StorageError(f"the index {path} can't be used: {error}") from error
    except OSError as error:
        raise StorageError(f"the index {path} can't be used: {error}") from error
