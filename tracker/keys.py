"""The cluster's signing key: whoever holds it says who is a member."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import StorageError
from p2pdist.pki import Authority

NAME = "cluster.key"  # 32 bytes, the raw Ed25519 private key


def derived_key(authority: Authority) -> Ed25519PrivateKey:
    """The key that follows from an authority brought from outside: replicas with the same authority have the same."""
    return Ed25519PrivateKey.from_private_bytes(authority.derive("cluster key"))


def cluster_key(directory: str) -> Ed25519PrivateKey:
    """The key kept in `directory` (created at the first start, readable by the owner only); a new one if it is empty.

    Raises:
        StorageError: the directory or the key can't be read or made, or the key isn't one.
    """
    if not directory:
        return Ed25519PrivateKey.generate()
    path = Path(directory) / NAME
    try:
        Path(directory).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path, Ed25519PrivateKey.generate().private_bytes_raw())
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except OSError as error:
        raise StorageError(f"the cluster key {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StorageError(f"the cluster key {path} isn't 32 bytes; restore it, or remove it to start anew") from error


def _create(path: Path, raw: bytes) -> None:
    """Whole or not at all, also after a crash; the first of several wins."""
    staging = path.with_name(f"{NAME}.{os.getpid()}")
    handle = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, raw)
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        os.link(staging, path)
    except FileExistsError:
        pass
    finally:
        staging.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
