"""What a certificate says: cluster, role, key and labels, bound together in URI names (RFC 5280, 4.2.1.6). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2pdist.errors import InputError

_SCHEME = "p2pdist://"


class Role(StrEnum):
    """What the holder of a certificate may do: move chunks, lead a cluster, or look at and change it."""

    NODE = "node"
    TRACKER = "tracker"
    ADMIN = "admin"

    @property
    def host(self) -> str:
        """The DNS name in every certificate of the role: TLS itself then checks that a server has the right one."""
        return f"{self}.p2pdist"


@dataclass(frozen=True, slots=True)
class Identity:
    """One member. `key`: its raw Ed25519 public key (32 bytes). Labels come from the token it enrolled with."""

    cluster: str
    role: Role
    key: bytes
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def uris(self) -> list[str]:
        """As they stand in the certificate."""
        base = f"{_SCHEME}{self.cluster}"
        labels = [f"{base}/label/{quote(key, safe='')}={quote(value, safe='')}" for key, value in self.labels.items()]
        return [f"{base}/{self.role}/{self.key.hex()}", *labels]


def cluster_of(authority: x509.Certificate) -> str:
    """The cluster's name: 16 hex digits of its authority's key; stays when the authority's certificate is renewed."""
    spki = authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:16]


def identity_of(certificate: x509.Certificate) -> Identity:
    """What a certificate says of its holder; that its chain holds is for TLS to check.

    Raises:
        InputError: it isn't a member's certificate, or the key in its name isn't the one it was made for.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        public = certificate.public_key()
    except (x509.ExtensionNotFound, ValueError) as error:
        raise InputError(f"not a member's certificate: {error}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise InputError("not a member's certificate: its key isn't an Ed25519 key")
    parts = [_parts(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
    named = [(cluster, kind, rest) for cluster, kind, rest in parts if kind != "label"]
    if len(named) != 1 or len({cluster for cluster, _, _ in parts}) != 1:
        raise InputError(f"a member's certificate has one name in one cluster; this one has {len(named)}")
    cluster, kind, rest = named[0]
    if kind not in set(Role):
        raise InputError(f"a certificate for the unknown role {kind!r}")
    if rest != public.public_bytes_raw().hex():
        raise InputError("the certificate's name isn't the key that it was made for")
    labels = dict(rest.split("=", 1) for _, kind, rest in parts if kind == "label" and "=" in rest)
    return Identity(
        cluster,
        Role(kind),
        public.public_bytes_raw(),
        {unquote(key): unquote(value) for key, value in labels.items()},
    )


def _parts(uri: str) -> tuple[str, str, str]:
    cluster, _, path = uri.removeprefix(_SCHEME).partition("/")
    kind, _, rest = path.partition("/")
    if not uri.startswith(_SCHEME) or not cluster or not rest:
        raise InputError(f"not a name in a cluster: {uri[:100]!r}")
    return cluster, kind, rest
