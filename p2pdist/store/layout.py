"""Where things are in a data directory, and how a file gets its final name.

    lock               held by the one process that uses the directory
    index.sqlite3      what is known of the blobs (a cache of proofs: the files are the truth)
    blobs/sha256/HEX   proved content, as in an OCI image layout (image-spec, image-layout.md, "Blobs")
    staging/           partial blobs: sha256-HEX.part beside sha256-HEX.journal, and *.tmp of small content
    trash/             dropped files on their way out

Every name is made of a validated `Digest`, never of text from outside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pdist.errors import InvalidDigest, StorageError
from p2pdist.oci import Digest
from p2pdist.store.faults import storage_errors

_ALGORITHMS = ("sha256", "sha512")
_JOURNAL = ".journal"
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths under one data directory. `create` does IO; nothing else here but the listings does."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def index(self) -> Path:
        return self.root / "index.sqlite3"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def blobs(self, algorithm: str) -> Path:
        return self.root / "blobs" / algorithm

    def blob(self, digest: Digest) -> Path:
        return self.blobs(digest.algorithm) / digest.hex

    def part(self, digest: Digest) -> Path:
        return self.staging / f"{digest.algorithm}-{digest.hex}{_PART}"

    def journal(self, digest: Digest) -> Path:
        return self.staging / f"{digest.algorithm}-{digest.hex}{_JOURNAL}"

    def create(self) -> None:
        """Makes the directories that are missing, durably. StorageError if that can't be done."""
        with storage_errors(f"making the data directory {self.root}"):
            try:
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # private images are in it
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise StorageError(
                    f"can't make the data directory {self.root}: {error.strerror}; name one with node.data_dir where "
                    "the agent's user may write"
                ) from error
            for directory in (self.staging, self.trash, *(self.blobs(name) for name in _ALGORITHMS)):
                directory.mkdir(parents=True, exist_ok=True)
            for directory in (self.root / "blobs", self.root):
                sync_directory(directory)

    def blob_files(self) -> Iterator[Digest]:
        """Every file in `blobs/` whose name is a digest; names prove nothing. Foreign files are left alone."""
        for algorithm in _ALGORITHMS:
            for name in sorted(os.listdir(self.blobs(algorithm))):
                try:
                    yield Digest(algorithm, name)
                except InvalidDigest:
                    continue

    def journals(self) -> Iterator[Digest]:
        """Every digest with a journal in `staging/`."""
        for name in sorted(os.listdir(self.staging)):
            if not name.endswith(_JOURNAL):
                continue
            algorithm, _, hexadecimal = name.removesuffix(_JOURNAL).partition("-")
            try:
                yield Digest(algorithm, hexadecimal)
            except InvalidDigest:
                continue


def delete(path: Path) -> None:
    """Deletes whatever is there, also a directory that somebody made where a blob belongs."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path)


def sync_directory(path: Path) -> None:
    """Makes the names in `path` durable (fsync of the directory)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
