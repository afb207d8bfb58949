"""Join tokens: what a node needs to become a member, and to know that it joins the right cluster. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from p2pdist.errors import ConfigError, InputError

_PREFIX = "p2pdist1"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`p2pdist1.<fingerprint>.<secret>`: sha256 of the authority's certificate (DER), and 32 secret bytes.

    The fingerprint makes the first contact as sure as any later one: the secret goes only to a server whose
    certificate that authority has signed.
    """

    fingerprint: bytes
    secret: bytes

    def __str__(self) -> str:
        return f"{_PREFIX}.{_text(self.fingerprint)}.{_text(self.secret)}"

    def __repr__(self) -> str:
        return f"JoinToken({self.number})"  # logs and tracebacks are read by others

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises ConfigError, without the text: it is a secret."""
        prefix, _, rest = text.strip().partition(".")
        fingerprint, _, secret = rest.partition(".")
        try:
            token = cls(_bytes(fingerprint), _bytes(secret))
        except (ValueError, binascii.Error):
            token = cls(b"", b"")
        if prefix != _PREFIX or len(token.fingerprint) != 32 or len(token.secret) != 32:
            raise ConfigError(f'not a join token ("{_PREFIX}.…"); `p2pdist-tracker token create` makes one')
        return token

    @property
    def hashed(self) -> bytes:
        """What the tracker keeps: 32 random bytes need no slow hash."""
        return hash_secret(self.secret)

    @property
    def number(self) -> str:
        """What it is called in lists and logs: 12 hex digits, no secret."""
        return self.hashed.hex()[:12]

    def is_of_any(self, authorities: Iterable[x509.Certificate]) -> None:
        """Raises InputError unless one of these is the authority whose fingerprint the token carries."""
        if not any(hmac.compare_digest(one.fingerprint(SHA256()), self.fingerprint) for one in authorities):
            raise InputError("the join token is another cluster's")

    def is_of(self, authority: x509.Certificate) -> None:
        """Raises InputError unless this is the authority whose fingerprint the token carries."""
        if not hmac.compare_digest(authority.fingerprint(SHA256()), self.fingerprint):
            raise InputError(
                "the tracker's certificate authority isn't the one that the join token names: another cluster, "
                "or somebody in between"
            )


def hash_secret(secret: bytes) -> bytes:
    """The stored form of a token's secret."""
    return hashlib.sha256(b"p2pdist join 1\0" + secret).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
