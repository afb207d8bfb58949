"""An OCI image layout on disk (image-spec, image-layout.md): written whole or not at all, read with suspicion.

oci-layout       the version
index.json       which images are in it, and their names
blobs/ALG/HEX    their content
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from p2pdist.errors import DiskFull, InvalidManifest, InvalidReference, StorageError
from p2pdist.oci import Digest, Index, Reference, parse_manifest
from p2pdist.oci.mediatypes import OCI_INDEX
from p2pdist.protocol.limits import MAX_MANIFEST

NAME = "io.containerd.image.name"  # annotation with the whole reference, as containerd and nerdctl write it
REF_NAME = "org.opencontainers.image.ref.name"  # the tag, or whatever else a tool puts there
_VERSION = {"imageLayoutVersion": "1.0.0"}
_FEW = 4096  # bytes of oci-layout
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Root:
    """An image of a layout. `reference`: None where the layout names none that can be pulled."""

    digest: Digest
    media_type: str
    size: int
    reference: Reference | None
    annotations: Mapping[str, str]


class NewLayout:
    """A layout that is being written, beside its final place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._there: set[Digest] = set()

    def has(self, digest: Digest) -> bool:
        """It was written already: layers are often shared."""
        return digest in self._there

    @contextmanager
    def blob(self, digest: Digest) -> Iterator[BlobWriter]:
        """Write one blob; it is kept if `BlobWriter.proved` was called. StorageError."""
        directory = self._path / "blobs" / digest.algorithm
        path = directory / digest.hex
        with _disk(f"writing {digest}"):
            directory.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with file:
            writer = BlobWriter(digest, file)
            try:
                yield writer
            finally:
                if not writer.done:
                    path.unlink(missing_ok=True)
        if not writer.done:
            raise StorageError(f"{digest} was not proved")
        self._there.add(digest)

    def put(self, data: bytes, digest: Digest) -> None:
        """A small blob at once. StorageError: also when `data` is not what `digest` says."""
        if not self.has(digest):
            with self.blob(digest) as writer:
                writer.write(data)
                writer.proved(len(data))

    def finish(self, root: Digest, size: int, media_type: str, reference: Reference) -> None:
        """The image that the layout is of."""
        annotations = {NAME: str(reference.repository) + (f":{reference.tag}" if reference.tag else f"@{root}")}
        if reference.tag:
            annotations[REF_NAME] = reference.tag
        entry = {"mediaType": media_type, "digest": str(root), "size": size, "annotations": annotations}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        with _disk("writing the layout"):
            (self._path / "index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            (self._path / "oci-layout").write_text(json.dumps(_VERSION) + "\n")


class BlobWriter:
    """The bytes of one blob, hashed as they are written."""

    def __init__(self, digest: Digest, file: BinaryIO) -> None:
        self.done = False
        self._digest = digest
        self._file = file
        self._hasher = digest.hasher()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._hasher.update(data)
        with _disk(f"writing {self._digest}"):
            self._file.write(data)
        self._size += len(data)

    def proved(self, size: int) -> None:
        """All is written. StorageError unless it is the blob, of that size."""
        got = f"{self._digest.algorithm}:{self._hasher.hexdigest()}"
        if got != str(self._digest) or self._size != size:
            raise StorageError(f"wanted {self._digest} ({size} bytes), got {got} ({self._size} bytes)")
        with _disk(f"writing {self._digest}"):
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done = True


@contextmanager
def new_layout(directory: Path) -> Iterator[NewLayout]:
    """Write a layout that appears as `directory` once the body is through. StorageError: also if it is there."""
    staging = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    if directory.exists():
        raise StorageError(f"{directory} is there already; remove it, or name another directory")
    with _disk(f"making {directory}"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    try:
        yield NewLayout(staging)
        with _disk(f"making {directory}"):
            staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def find_layout(directory: Path) -> Path:
    """The layout: `directory` itself or, as torrent clients leave it, its only subdirectory. StorageError."""
    if (directory / "oci-layout").is_file():
        return directory
    with _disk(f"reading {directory}"):
        inner = [path for path in sorted(directory.iterdir()) if (path / "oci-layout").is_file()]
    if len(inner) != 1:
        raise StorageError(f"{directory} holds {len(inner)} OCI image layouts; wanted the directory of one")
    return inner[0]


def read_roots(directory: Path) -> list[Root]:
    """The images of a layout. InvalidManifest, StorageError."""
    version = _read(directory / "oci-layout", _FEW)
    try:
        known = str(json.loads(version)["imageLayoutVersion"]).startswith("1.")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidManifest(f"{directory}/oci-layout says no version") from error
    if not known:
        raise InvalidManifest(f"{directory} is a layout of an unknown version")
    index = parse_manifest(_read(directory / "index.json", MAX_MANIFEST), OCI_INDEX)
    assert isinstance(index, Index)
    return [
        Root(entry.digest, entry.media_type, entry.size, _reference(entry.annotations), entry.annotations)
        for entry in index.manifests
    ]


def _reference(annotations: Mapping[str, str]) -> Reference | None:
    for name in (NAME, REF_NAME):
        text = annotations.get(name, "")
        if "/" in text:  # a bare tag names no repository
            try:
                return Reference.parse(text)
            except InvalidReference:
                continue
    return None


def open_content(directory: Path, digest: Digest) -> int | None:
    """A descriptor of a blob's file, which is a regular one and no link; None if there is none. StorageError."""
    path = directory / "blobs" / digest.algorithm / digest.hex
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError(f"{path} is no regular file")
    return fd


def read_content(directory: Path, digest: Digest, size: int) -> bytes:
    """A manifest's bytes, proved. StorageError: not there, or not what it should be."""
    fd = open_content(directory, digest)
    if fd is None:
        raise StorageError(f"{digest} is not in {directory}")
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_MANIFEST + 1)
    got = Digest.of(data, digest.algorithm)
    if got != digest or len(data) != size:
        raise StorageError(f"wanted {digest} ({size} bytes) in {directory}, got {got} ({len(data)} bytes)")
    return data


def _read(path: Path, most: int) -> bytes:
    with _disk(f"reading {path}"), path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidManifest(f"{path} has over {most} bytes")
    return data


@contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{what}: {error.strerror or error}"
        raise DiskFull(text) if error.errno in _NO_SPACE else StorageError(text) from error
