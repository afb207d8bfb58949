"""notation's JWS envelope: RFC 7515 flattened JSON with one signature (signature-envelope-jws.md)."""

from __future__ import annotations

from cryptography import x509

from p2pdist.trust import encodings, limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.notation import envelope
from p2pdist.trust.notation.envelope import Content
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures.certificates import load_der

MEDIA_TYPE = "application/jose+json"


def open_jws(raw: bytes) -> Content:
    """What the envelope says, its signature checked with its leaf's key. Whether that is trusted is not asked here."""
    fields = Fields.parse(raw, limits.ENVELOPE, "JWS", Refused)
    fields.only("payload", "protected", "header", "signature")
    chain: list[x509.Certificate] = []
    for item in fields.object("header").texts("x5c"):
        if len(chain) == limits.CERTIFICATES:
            fields.fail(f"more than {limits.CERTIFICATES} certificates")
        chain.append(load_der(encodings.base64_bytes(item, "JWS x5c"), "JWS x5c"))
    protected, payload = fields.text("protected"), fields.text("payload")
    headers = Fields.parse(
        encodings.base64url_bytes(protected, "JWS protected"), limits.PAYLOAD, "JWS protected", Refused
    )
    raw_signature = fields.raw("signature")
    if not isinstance(raw_signature, str):
        fields.fail("signature must be text")
    signature = encodings.base64url_bytes(raw_signature, "JWS signature")
    signed = f"{protected}.{payload}".encode("ascii")
    algorithm = envelope.verify_signature(chain[0], headers.raw("alg"), signature, signed)
    scheme = envelope.check_headers(headers.raw(envelope.SIGNING_SCHEME), headers.raw("crit"), headers.names())
    content_type = headers.text("cty")
    if content_type != envelope.PAYLOAD_TYPE:
        headers.fail(f"cty is {shown(content_type)}, wanted {envelope.PAYLOAD_TYPE}")
    time_name = envelope.SIGNING_TIME if scheme == envelope.SCHEME_X509 else envelope.AUTHENTIC_SIGNING_TIME
    signed_at = encodings.time_rfc3339(headers.text(time_name), "signing time")
    expiry_text = headers.optional_text(envelope.EXPIRY)
    expiry = None if expiry_text is None else encodings.time_rfc3339(expiry_text, "expiry")
    envelope.check_times(signed_at, expiry)
    return Content(
        encodings.base64url_bytes(payload, "JWS payload"), scheme, signed_at, expiry, tuple(chain), f"JWS {algorithm}"
    )
