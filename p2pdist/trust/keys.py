"""Public keys that a policy trusts, and whether one of them made a signature.

The algorithm follows from the key and from nothing that the signature says: P-256 with SHA-256, P-384 with SHA-384,
P-521 with SHA-512; RSA of 2048 bits and more by PKCS#1 v1.5 with SHA-256; Ed25519 pure. (cosign 3 signs with
Ed25519ph where it has an Ed25519 key; `cryptography` has no such thing, and neither cosign verify nor
containers/image accept it.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from p2pdist.trust.encodings import pem_block
from p2pdist.trust.refusal import Refused, refusing

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

EC_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # a verification by a larger one takes milliseconds


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key with where it came from. `der`: its SubjectPublicKeyInfo; `fingerprint`: sha256 of that, in hex."""

    key: PublicKey = field(repr=False, hash=False, compare=False)
    der: bytes = field(repr=False)
    origin: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, in hex."""
        return hashlib.sha256(self.der).hexdigest()

    def __str__(self) -> str:
        return f"key {self.origin} (SHA256:{self.fingerprint[:16]})"

    @classmethod
    def from_pem(cls, data: bytes, origin: str) -> TrustedKey:
        """The one public key in a PEM file.

        Raises:
            Refused: not exactly one public key, or a kind that isn't supported.
        """
        return cls.from_der(pem_block(data, ("PUBLIC KEY",), f"key {origin}"), origin)

    @classmethod
    def from_der(cls, der: bytes, origin: str) -> TrustedKey:
        """The key of a SubjectPublicKeyInfo; Refused as above."""
        with refusing(f"key {origin}"):
            loaded = serialization.load_der_public_key(der)
        key = supported(loaded, f"key {origin}")
        return cls(key, public_der(key), origin)


def supported(key: object, what: str) -> PublicKey:
    """`key` if it is of a kind and size that is verified here, else Refused."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name in EC_HASHES:
            return key
        raise Refused(f"{what} is on the curve {key.curve.name}; known are {', '.join(EC_HASHES)}")
    if isinstance(key, rsa.RSAPublicKey):
        if MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return key
        raise Refused(f"{what} is RSA of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise Refused(f"{what} is of an unsupported kind; ECDSA, RSA and Ed25519 are known")


def public_der(key: PublicKey) -> bytes:
    """The SubjectPublicKeyInfo of `key`."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def verify(key: PublicKey, signature: bytes, data: bytes, what: str) -> None:
    """Refused unless `signature` over `data` was made with `key`."""
    with refusing(what):
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(EC_HASHES[key.curve.name]()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data)


def verify_any(keys: tuple[TrustedKey, ...], signature: bytes, data: bytes, what: str) -> TrustedKey:
    """The first of `keys` that made `signature` over `data`; Refused when none did."""
    for trusted in keys:
        try:
            verify(trusted.key, signature, data, what)
        except Refused:
            continue
        return trusted
    names = ", ".join(str(trusted) for trusted in keys)
    raise Refused(f"{what}: the signature is by none of the trusted keys ({names})")
