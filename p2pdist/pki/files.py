"""Secrets on disk: readable by their owner only, whole or not at all, also after a crash."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from p2pdist.errors import StorageError

MAX_SECRET = 256 * 1024  # bytes


def write_secret(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write `data` with mode 0600. Without `replace` the first of several writers wins and the others change nothing.

    Raises:
        StorageError: it can't be written.
    """
    staging = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _publish(staging, path, replace)
        finally:
            staging.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}") from error


def _publish(staging: Path, path: Path, replace: bool) -> None:
    if replace:
        staging.rename(path)
        return
    try:
        os.link(staging, path)
    except FileExistsError:
        return


def read_secret(path: Path) -> bytes | None:
    """The file's bytes; None if there is none. Raises StorageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_SECRET:
        raise StorageError(f"{path} is over {MAX_SECRET} bytes: not a key or certificate")
    return data
