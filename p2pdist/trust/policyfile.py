"""The policy on disk: read with all it names, noticed when it changes, kept when what it changed to is wrong."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from p2pdist.errors import ConfigError
from p2pdist.trust import limits
from p2pdist.trust.policy import Policy, parse_policy

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy with its generation: a hash of the file and of every file it names, so that it survives a restart."""

    policy: Policy
    generation: str
    origin: str


class DiskFiles:
    """`requirement_reader.Files` on disk. Remembers what it read, to tell later whether any of it has changed."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._stamps: dict[Path, _Stamp | None] = {}
        self._hash = hashlib.sha256()

    def read(self, path: str) -> bytes:
        """See Files."""
        full = self._base / path
        self._stamps.setdefault(full, None)
        try:
            with full.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{path} is not a regular file")
                self._stamps[full] = _stamp(status)
                data = file.read(limits.POLICY_FILE + 1)
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        if len(data) > limits.POLICY_FILE:
            raise ConfigError(f"{path} has more than {limits.POLICY_FILE} bytes")
        self._hash.update(f"{len(path)} {len(data)} {path}".encode("utf-8", "surrogateescape") + data)
        return data

    def names(self, path: str) -> list[str]:
        """See Files."""
        full = self._base / path
        self._stamps.setdefault(full, None)
        try:
            self._stamps[full] = _stamp(full.stat())
            names = sorted(entry.name for entry in os.scandir(full) if entry.is_file())
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        if len(names) > limits.TRUST_STORE_FILES:
            raise ConfigError(f"{path} has {len(names)} files; at most {limits.TRUST_STORE_FILES} are read")
        return names

    def changed(self) -> bool:
        """Whether anything that was read, or could not be, is different now."""
        return any(_stamp_of(path) != stamp for path, stamp in self._stamps.items())

    @property
    def generation(self) -> str:
        """A hash of everything read so far."""
        return self._hash.hexdigest()[:16]


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


class PolicyFile:
    """The policy in force. `current()` looks whether the file has changed (a stat of each file it names) and reads it.

    A change that is wrong changes nothing: the policy before stays in force, `problem` says what is wrong, and it is
    logged once.
    """

    def __init__(self, path: Path, base: Path | None = None) -> None:
        """`base`: what relative paths in the file start from; the file's own directory unless given."""
        self._path = path
        self._base = path.parent if base is None else base
        self._log = structlog.get_logger("p2pdist.trust")
        self._files, self._loaded = self._read()
        self.problem: str | None = None

    def _read(self) -> tuple[DiskFiles, LoadedPolicy]:
        files = DiskFiles(self._base)
        return files, _load(files, self._path)

    def current(self) -> LoadedPolicy:
        """The policy in force now. Reads the file when it has changed: a few milliseconds."""
        if self._files.changed():
            self._reload()
        return self._loaded

    def _reload(self) -> None:
        files = DiskFiles(self._base)
        try:
            loaded = _load(files, self._path)
        except ConfigError as error:
            self.problem = str(error)
            self._log.error("the changed policy is wrong: the one before stays in force", problem=self.problem)
        else:
            if loaded.generation != self._loaded.generation:
                self._log.info("policy changed", generation=loaded.generation, file=loaded.origin)
            self._loaded, self.problem = loaded, None
        self._files = files


def load_policy(path: Path, base: Path | None = None) -> LoadedPolicy:
    """Read a policy file once; ConfigError as parse_policy, or when it can't be read."""
    return _load(DiskFiles(path.parent if base is None else base), path)


def _load(files: DiskFiles, path: Path) -> LoadedPolicy:
    raw = files.read(str(path.absolute()))
    policy = parse_policy(raw, files, str(path))
    return LoadedPolicy(policy, files.generation, str(path))
