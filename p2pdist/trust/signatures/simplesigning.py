"""cosign's simple signing: a small JSON payload that names image and identity, its signature in an annotation.

containers-signature(5) for the payload, cosign's SIGNATURE_SPEC.md for the annotations. The payload is read only
after its signature over the exact bytes has held, and may have no key that the format doesn't know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from p2pdist.errors import InvalidDigest, InvalidReference
from p2pdist.oci import Digest
from p2pdist.trust import encodings, keys, limits
from p2pdist.trust.fields import Fields, kind
from p2pdist.trust.identity import Name, SignedIdentity
from p2pdist.trust.refusal import Refused, refusing, shown
from p2pdist.trust.signatures import certificates, keyless, rekor
from p2pdist.trust.signatures.bundle import Signed
from p2pdist.trust.signatures.certificates import Authority
from p2pdist.trust.signatures.keyless import Identity, KeylessTrust

MEDIA_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_TYPE = "cosign container image signature"
GPG_TYPE = "atomic container signature"

SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
LOG_BUNDLE = "dev.sigstore.cosign/bundle"


@dataclass(frozen=True, slots=True)
class Payload:
    """What a payload says: this image, under this name."""

    digest: Digest
    name: Name


@dataclass(frozen=True, slots=True)
class KeyTrust:
    """Any of `trusted`; where `log_keys` aren't empty, one of those logs must have the signature too."""

    trusted: tuple[keys.TrustedKey, ...]
    log_keys: tuple[keys.TrustedKey, ...] = ()

    def __str__(self) -> str:
        return " or ".join(str(key) for key in self.trusted)


@dataclass(frozen=True, slots=True)
class FulcioTrust:
    """containers-policy.json's `fulcio`: an authority, an issuer and an e-mail address, and keys of logs."""

    authorities: tuple[Authority, ...]
    issuer: str
    email: str
    log_keys: tuple[keys.TrustedKey, ...]

    def __str__(self) -> str:
        return f"identity {self.email} by {self.issuer}"


@dataclass(frozen=True, slots=True)
class PkiTrust:
    """containers-policy.json's `pki`: a certificate of one's own authority, valid now, for an e-mail or host name."""

    authorities: tuple[Authority, ...]
    email: str | None
    hostname: str | None

    def __str__(self) -> str:
        return f"certificate for {' and '.join(name for name in (self.email, self.hostname) if name)}"


SimpleTrust = KeyTrust | FulcioTrust | PkiTrust | KeylessTrust


def verify_simple(
    payload: bytes,
    annotations: Mapping[str, str],
    manifest: bytes,
    pulled: Name,
    trust: SimpleTrust,
    identity: SignedIdentity,
    now: datetime,
) -> Signed:
    """Who signed `manifest` (the image's bytes) as what the policy's `identity` asks for `pulled`.

    Raises:
        Refused: not by `trust`, of another image, or for another name.
    """
    if SIGNATURE not in annotations:
        raise Refused(f"no annotation {SIGNATURE}")
    signature = encodings.base64_bytes(annotations[SIGNATURE], "the signature annotation")
    signer, method, expires = _signer(payload, signature, annotations, trust, now)
    said = parse_payload(payload, COSIGN_TYPE)
    check_payload(said, manifest, pulled, identity)
    return Signed(signer, method, said.digest, str(said.name), expires)


def parse_payload(payload: bytes, type_: str) -> Payload:
    """What a payload of this type says; Refused unless it is exactly of the format."""
    fields = Fields.parse(payload, limits.PAYLOAD, "payload", Refused)
    fields.only("critical", "optional")
    critical = fields.object("critical")
    critical.only("type", "image", "identity")
    if critical.text("type") != type_:
        critical.fail(f"type is {shown(critical.text('type'))}, wanted {type_!r}")
    image, identity = critical.object("image"), critical.object("identity")
    image.only("docker-manifest-digest")
    identity.only("docker-reference")
    if fields.raw("optional") is not None:
        _check_optional(fields.object("optional"))
    elif "optional" not in fields:
        fields.fail("no key 'optional'")
    try:
        return Payload(
            Digest.parse(image.text("docker-manifest-digest")), Name.parse(identity.text("docker-reference"))
        )
    except (InvalidDigest, InvalidReference) as error:
        raise Refused(f"payload: {error}") from error


def _check_optional(optional: Fields) -> None:
    if "creator" in optional and not isinstance(optional.raw("creator"), str):
        optional.fail("creator must be text")
    stamp = optional.raw("timestamp")
    if "timestamp" in optional and not (type(stamp) is int or (isinstance(stamp, float) and stamp.is_integer())):
        optional.fail(f"timestamp must be a whole number; got {kind(stamp)}")


def check_payload(said: Payload, manifest: bytes, pulled: Name, identity: SignedIdentity) -> None:
    """Refused unless the payload is of this manifest and its name is accepted."""
    if said.digest != Digest.of(manifest, said.digest.algorithm):
        raise Refused(f"it is a signature of another image, {said.digest}")
    if not identity.accepts(pulled, said.name):
        raise Refused(f"it is for {shown(str(said.name))}, which {identity} does not accept for {pulled}")


# --- who signed ---------------------------------------------------------------------------------------------------


def _signer(
    payload: bytes, signature: bytes, annotations: Mapping[str, str], trust: SimpleTrust, now: datetime
) -> tuple[str, str, datetime | None]:
    match trust:
        case KeyTrust():
            key = keys.verify_any(trust.trusted, signature, payload, "simple signing")
            if trust.log_keys:
                entry, timestamp = _log_entry(annotations)
                rekor.verify_set_any(entry, timestamp, trust.log_keys)
                rekor.check_hashedrekord(entry.body, signature, key.der, payload)
            return str(key), "cosign simple signing, key", None
        case KeylessTrust():
            certificate = _certificate(annotations)
            _verify(certificate, signature, payload)
            entry, timestamp = _log_entry(annotations)
            logged = rekor.verify_set(entry, timestamp, trust.root.logs)
            rekor.check_hashedrekord(entry.body, signature, keyless.certificate_der(certificate), payload)
            keyless.check_certificate(certificate, trust, logged)
            return str(trust.identity), f"cosign simple signing, keyless, logged {logged:%FT%TZ}", None
        case FulcioTrust():
            return _fulcio(payload, signature, annotations, trust)
        case PkiTrust():
            return _pki(payload, signature, annotations, trust, now)


def _fulcio(
    payload: bytes, signature: bytes, annotations: Mapping[str, str], trust: FulcioTrust
) -> tuple[str, str, datetime | None]:
    certificate = _certificate(annotations)
    _verify(certificate, signature, payload)
    entry, timestamp = _log_entry(annotations)
    logged = rekor.verify_set_any(entry, timestamp, trust.log_keys)
    rekor.check_hashedrekord(entry.body, signature, keyless.certificate_der(certificate), payload)
    certificates.check_life(certificate, logged)
    certificates.verify_chain(certificate, trust.authorities, _intermediates(annotations), logged)
    certificates.check_signs(certificate)
    keyless.check_identity(certificate, Identity(trust.email, trust.issuer))
    emails, _ = certificates.subjects(certificate)
    if trust.email not in emails:  # the same text as a URI is not the e-mail address that was asked for
        raise Refused(f"the certificate has no e-mail address {trust.email}")
    return f"{trust.email} by {trust.issuer}", f"cosign simple signing, Fulcio, logged {logged:%FT%TZ}", None


def _pki(
    payload: bytes, signature: bytes, annotations: Mapping[str, str], trust: PkiTrust, now: datetime
) -> tuple[str, str, datetime | None]:
    certificate = _certificate(annotations)
    _verify(certificate, signature, payload)
    chain = certificates.verify_chain(certificate, trust.authorities, _intermediates(annotations), now)
    certificates.check_signs(certificate)
    emails, _ = certificates.subjects(certificate)
    if trust.email is not None and trust.email not in emails:
        raise Refused(f"the certificate has no e-mail address {trust.email}")
    if trust.hostname is not None and trust.hostname not in certificates.hostnames(certificate):
        raise Refused(f"the certificate has no host name {trust.hostname}")
    return str(trust), "cosign simple signing, PKI", min(link.not_valid_after_utc for link in chain)


def _verify(certificate: x509.Certificate, signature: bytes, payload: bytes) -> None:
    keys.verify(keyless.certificate_key(certificate), signature, payload, "simple signing")


def _certificate(annotations: Mapping[str, str]) -> x509.Certificate:
    if CERTIFICATE not in annotations:
        raise Refused(f"no annotation {CERTIFICATE}")
    what = "the certificate annotation"
    with refusing(what):
        pem = annotations[CERTIFICATE].encode("ascii")
    return certificates.load_der(encodings.pem_block(pem, ("CERTIFICATE",), what), what)


def _intermediates(annotations: Mapping[str, str]) -> list[x509.Certificate]:
    if CHAIN not in annotations:
        return []
    with refusing("the chain annotation"):
        chain = x509.load_pem_x509_certificates(annotations[CHAIN].encode("ascii"))
    if len(chain) > limits.CERTIFICATES:
        raise Refused(f"the chain annotation has {len(chain)} certificates")
    return chain[:-1]  # cosign puts the root last; ours comes from the policy


def _log_entry(annotations: Mapping[str, str]) -> tuple[rekor.Entry, bytes]:
    if LOG_BUNDLE not in annotations:
        raise Refused(f"no annotation {LOG_BUNDLE}: nothing shows that a transparency log has the signature")
    with refusing("the log annotation"):
        raw = annotations[LOG_BUNDLE].encode("utf-8")
    fields = Fields.parse(raw, limits.ENVELOPE, "the log annotation", Refused)
    fields.only("SignedEntryTimestamp", "Payload")
    payload = fields.object("Payload")
    payload.only("body", "integratedTime", "logIndex", "logID")
    entry = rekor.Entry(
        encodings.base64_bytes(payload.text("body"), "the log entry's body"),
        payload.number("integratedTime"),
        payload.number("logIndex"),
        encodings.hex_bytes(payload.text("logID"), "the log's id"),
    )
    return entry, encodings.base64_bytes(fields.text("SignedEntryTimestamp"), "the signed entry timestamp")
