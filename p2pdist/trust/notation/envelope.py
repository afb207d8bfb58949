"""What both of notation's envelopes carry, once their signature has held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from p2pdist.trust.keys import EC_HASHES
from p2pdist.trust.refusal import Refused, refusing, shown

SIGNING_SCHEME = "io.cncf.notary.signingScheme"
SIGNING_TIME = "io.cncf.notary.signingTime"
AUTHENTIC_SIGNING_TIME = "io.cncf.notary.authenticSigningTime"
EXPIRY = "io.cncf.notary.expiry"
_PLUGIN = ("io.cncf.notary.verificationPlugin", "io.cncf.notary.verificationPluginMinVersion")

PAYLOAD_TYPE = "application/vnd.cncf.notary.payload.v1+json"
SCHEME_X509 = "notary.x509"
SCHEME_AUTHORITY = "notary.x509.signingAuthority"
_UNDERSTOOD = {SIGNING_SCHEME, AUTHENTIC_SIGNING_TIME, EXPIRY}


@dataclass(frozen=True, slots=True)
class Content:
    """The signed content of an envelope. `chain`: leaf first, unverified so far; only the leaf's key has been used."""

    payload: bytes
    scheme: str
    signed_at: datetime
    expiry: datetime | None
    chain: tuple[x509.Certificate, ...]
    algorithm: str


_RSA_ALGORITHMS: dict[int, tuple[str, type[hashes.HashAlgorithm]]] = {
    2048: ("PS256", hashes.SHA256),
    3072: ("PS384", hashes.SHA384),
    4096: ("PS512", hashes.SHA512),
}
_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def algorithm_of(leaf: x509.Certificate) -> str:
    """The one algorithm that a leaf's key signs with (signature-specification.md, "Algorithm Selection")."""
    with refusing("the leaf certificate"):
        key = leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in _RSA_ALGORITHMS:
        return _RSA_ALGORITHMS[key.key_size][0]
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _EC_ALGORITHMS:
        return _EC_ALGORITHMS[key.curve.name]
    raise Refused("the leaf certificate's key is neither RSA of 2048, 3072 or 4096 bits nor ECDSA on a NIST curve")


def verify_signature(leaf: x509.Certificate, stated: object, signature: bytes, signed: bytes) -> str:
    """The algorithm, from the leaf's key; Refused when the header states another or the signature doesn't hold."""
    algorithm = algorithm_of(leaf)
    if stated != algorithm:
        raise Refused(f"the header's alg is {shown(str(stated)[:40])}; the leaf's key signs with {algorithm}")
    key = leaf.public_key()
    with refusing("envelope"):
        if isinstance(key, rsa.RSAPublicKey):
            hash_ = _RSA_ALGORITHMS[key.key_size][1]()
            key.verify(signature, signed, padding.PSS(padding.MGF1(hash_), padding.PSS.DIGEST_LENGTH), hash_)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            size = (key.curve.key_size + 7) // 8
            if len(signature) != 2 * size:
                raise Refused(f"envelope: a signature of {len(signature)} bytes, wanted {2 * size}")
            pair = encode_dss_signature(
                int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            )
            key.verify(pair, signed, ec.ECDSA(EC_HASHES[key.curve.name]()))
        else:
            raise Refused("envelope: the leaf's key is of an unsupported kind")
    return algorithm


def check_headers(scheme: object, critical: object, present: Iterable[object]) -> str:
    """The signing scheme; Refused unless `crit` marks what it must and nothing that isn't understood here.

    Args:
        scheme: the value of the signing scheme header.
        critical: the value of `crit`.
        present: the names of all protected headers.
    """
    names = set(present)
    if scheme not in (SCHEME_X509, SCHEME_AUTHORITY):
        raise Refused(f"signing scheme {shown(str(scheme)[:40])} is unknown")
    if not isinstance(critical, list) or not critical or not all(isinstance(name, str) for name in critical):
        raise Refused("the crit header is missing or no list of names")
    unknown = sorted(set(critical) - _UNDERSTOOD)
    if unknown:
        raise Refused(f"critical header {shown(unknown[0])} is not understood")
    if len(set(critical)) != len(critical) or not set(critical) <= names:
        raise Refused("the crit header names a header twice, or one that isn't there")
    must = {SIGNING_SCHEME} | (names & {EXPIRY})
    if scheme == SCHEME_AUTHORITY:
        must.add(AUTHENTIC_SIGNING_TIME)
    unmarked = must - set(critical)
    if unmarked:
        raise Refused(f"a header that must be critical is not marked so: {', '.join(sorted(map(str, unmarked)))}")
    if names & set(_PLUGIN):
        raise Refused("it asks for a verification plugin; there are none here")
    wanted, other = (
        (SIGNING_TIME, AUTHENTIC_SIGNING_TIME) if scheme == SCHEME_X509 else (AUTHENTIC_SIGNING_TIME, SIGNING_TIME)
    )
    if wanted not in names or other in names:
        raise Refused(f"scheme {scheme} has {wanted} and not {other}")
    return str(scheme)


def check_times(signed_at: datetime, expiry: datetime | None) -> None:
    """Refused when it expires before it was made."""
    if expiry is not None and expiry <= signed_at:
        raise Refused("its expiry is not after its signing time")
