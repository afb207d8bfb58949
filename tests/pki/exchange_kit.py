"""An authority's files, as an operator lays them out."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.pki import Authority


def lay_out(directory: Path, authority: Authority, *others: Authority) -> None:
    """tls.crt, tls.key, and trusted.crt while there are two."""
    directory.mkdir(exist_ok=True)
    key = authority._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "tls.crt").write_bytes(authority.pem)
    (directory / "tls.key").write_bytes(key)
    trusted = directory / "trusted.crt"
    trusted.unlink(missing_ok=True)
    if others:
        trusted.write_bytes(b"".join(other.pem for other in others))
