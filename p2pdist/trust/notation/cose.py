"""notation's COSE envelope: a tagged COSE_Sign1 (RFC 9052 section 4.2; signature-envelope-cose.md)."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from p2pdist.trust import encodings, limits
from p2pdist.trust.notation import cbor, envelope
from p2pdist.trust.notation.cbor import Tagged
from p2pdist.trust.notation.envelope import Content
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures.certificates import load_der

MEDIA_TYPE = "application/cose"

_SIGN1 = 18
_EPOCH_TIME = 1
_ALG, _CRIT, _CONTENT_TYPE, _X5CHAIN = 1, 2, 3, 33  # RFC 9052 section 3.1, RFC 9360 section 2
_ALGORITHMS = {-7: "ES256", -35: "ES384", -36: "ES512", -37: "PS256", -38: "PS384", -39: "PS512"}


def open_cose(raw: bytes) -> Content:
    """What the envelope says, its signature checked with its leaf's key. Whether that is trusted is not asked here."""
    if len(raw) > limits.ENVELOPE:
        raise Refused(f"COSE: {len(raw)} bytes; at most {limits.ENVELOPE} are read")
    protected_bytes, unprotected, payload, signature = _parts(cbor.decode(raw, "COSE"))
    protected = cbor.decode(protected_bytes, "COSE protected header")
    if not isinstance(protected, dict):
        raise Refused("COSE: the protected header is not a map")
    if protected.keys() & unprotected.keys():
        raise Refused("COSE: a header is both protected and unprotected")
    chain = _chain(unprotected.get(_X5CHAIN))
    stated = protected.get(_ALG)
    name = _ALGORITHMS.get(stated) if type(stated) is int else None
    signed = cbor.array(
        cbor.text_string("Signature1"),
        cbor.byte_string(protected_bytes),
        cbor.byte_string(b""),
        cbor.byte_string(payload),
    )
    algorithm = envelope.verify_signature(chain[0], name or stated, signature, signed)
    scheme = envelope.check_headers(protected.get(envelope.SIGNING_SCHEME), protected.get(_CRIT), protected)
    content_type = protected.get(_CONTENT_TYPE)
    if content_type != envelope.PAYLOAD_TYPE:
        raise Refused(f"COSE: content type is {shown(str(content_type)[:80])}, wanted {envelope.PAYLOAD_TYPE}")
    time_name = envelope.SIGNING_TIME if scheme == envelope.SCHEME_X509 else envelope.AUTHENTIC_SIGNING_TIME
    signed_at = _time(protected[time_name], "signing time")
    expiry = _time(protected[envelope.EXPIRY], "expiry") if envelope.EXPIRY in protected else None
    envelope.check_times(signed_at, expiry)
    return Content(payload, scheme, signed_at, expiry, chain, f"COSE {algorithm}")


def _parts(message: object) -> tuple[bytes, dict[int | str, object], bytes, bytes]:
    if not isinstance(message, Tagged) or message.tag != _SIGN1:
        raise Refused("COSE: not a tagged COSE_Sign1")
    match message.value:
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            return protected, unprotected, payload, signature
        case _:
            raise Refused("COSE: not the four parts of a COSE_Sign1 with its payload in it")


def _chain(value: object) -> tuple[x509.Certificate, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= limits.CERTIFICATES:
        raise Refused(f"COSE: x5chain is not a list of 1 to {limits.CERTIFICATES} certificates")
    chain = []
    for item in value:
        if not isinstance(item, bytes):
            raise Refused("COSE: x5chain holds something else than certificates")
        chain.append(load_der(item, "COSE x5chain"))
    return tuple(chain)


def _time(value: object, what: str) -> datetime:
    if not isinstance(value, Tagged) or value.tag != _EPOCH_TIME or type(value.value) is not int:
        raise Refused(f"COSE: {what} is not a tagged time")
    return encodings.time_unix(value.value, what)
