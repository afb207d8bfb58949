"""Sigstore bundles v0.3 by key or by identity (protobuf-specs, sigstore_bundle.proto).

A bundle names no repository: the policy's scope is what binds a key or identity to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from p2pdist.oci import Digest
from p2pdist.trust import encodings, keys, limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures import certificates, keyless, rekor
from p2pdist.trust.signatures.keyless import KeylessTrust
from p2pdist.trust.signatures.statement import Condition, Envelope, check_statement, parse_envelope

MEDIA_TYPES = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a good signature says: who, with what, which digest, until when (None: no end)."""

    signer: str
    method: str
    digest: Digest
    identity: str | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Material:
    certificate: x509.Certificate | None
    entries: tuple[Fields, ...]


def verify_bundle(
    raw: bytes,
    manifest: bytes,
    trust: tuple[keys.TrustedKey, ...] | KeylessTrust,
    predicate_type: str,
    conditions: tuple[Condition, ...] = (),
) -> Signed:
    """Who signed `manifest` by the bundle `raw`.

    Raises:
        Refused: malformed, not by `trust`, of another image or predicate type, or a condition isn't met.
    """
    fields = Fields.parse(raw, limits.ENVELOPE, "bundle", Refused)
    media_type = fields.text("mediaType")
    if media_type not in MEDIA_TYPES:
        fields.fail(f"mediaType is {shown(media_type)}, wanted {MEDIA_TYPES[0]}")
    if "messageSignature" in fields:
        fields.fail("has a message signature; an image is signed by a DSSE envelope")
    envelope = parse_envelope(fields.object("dsseEnvelope"))
    if isinstance(trust, KeylessTrust):
        signed_by = _keyless(_material(fields.object("verificationMaterial")), envelope, trust)
        signer, method = str(trust.identity), f"sigstore bundle, keyless, logged {signed_by:%FT%TZ}"
    else:
        signer = str(keys.verify_any(trust, envelope.signature, envelope.signed, "bundle"))
        method = "sigstore bundle, key"
    return Signed(signer, method, check_statement(envelope.payload, manifest, predicate_type, conditions))


def verify_dsse(
    raw: bytes,
    manifest: bytes,
    trusted: tuple[keys.TrustedKey, ...],
    predicate_type: str,
    conditions: tuple[Condition, ...],
) -> Signed:
    """The same for a bare DSSE envelope, as cosign attaches under an `.att` tag; by key only."""
    envelope = parse_envelope(Fields.parse(raw, limits.ENVELOPE, "envelope", Refused))
    signer = str(keys.verify_any(trusted, envelope.signature, envelope.signed, "envelope"))
    digest = check_statement(envelope.payload, manifest, predicate_type, conditions)
    return Signed(signer, "DSSE attestation, key", digest)


def _material(fields: Fields) -> _Material:
    if "x509CertificateChain" in fields:
        fields.fail("has a certificate chain; a v0.3 bundle has one certificate")
    certificate = None
    if "certificate" in fields:
        der = encodings.base64_bytes(fields.object("certificate").text("rawBytes"), "the bundle's certificate")
        certificate = certificates.load_der(der, "the bundle's certificate")
    entries = fields.items("tlogEntries") if "tlogEntries" in fields else []
    if len(entries) > limits.LOG_ENTRIES:
        fields.fail(f"{len(entries)} log entries; at most {limits.LOG_ENTRIES} are taken")
    return _Material(certificate, tuple(Fields(entry, f"tlogEntries[{n}]", Refused) for n, entry in enumerate(entries)))


def _keyless(material: _Material, envelope: Envelope, trust: KeylessTrust) -> datetime:
    if material.certificate is None:
        raise Refused("the bundle has no certificate, so no identity")
    if not material.entries:
        raise Refused("the bundle has no transparency log entry")
    key = keyless.certificate_key(material.certificate)
    keys.verify(key, envelope.signature, envelope.signed, "bundle")
    reasons = []
    for entry in material.entries:
        try:
            logged = _logged(entry, material.certificate, envelope, trust)
            keyless.check_certificate(material.certificate, trust, logged)
        except Refused as error:
            reasons.append(str(error))
        else:
            return logged
    raise Refused("; ".join(reasons))


def _logged(fields: Fields, certificate: x509.Certificate, envelope: Envelope, trust: KeylessTrust) -> datetime:
    entry = rekor.Entry(
        encodings.base64_bytes(fields.text("canonicalizedBody"), f"{fields.where}.canonicalizedBody"),
        _number(fields, "integratedTime"),
        _number(fields, "logIndex"),
        encodings.base64_bytes(fields.object("logId").text("keyId"), f"{fields.where}.logId"),
    )
    rekor.verify_inclusion(entry, _proof(fields), trust.root.logs)
    promise = fields.optional_object("inclusionPromise")
    if promise is None:
        fields.fail("no signed entry timestamp: nothing trusted says when it was signed")
    timestamp = encodings.base64_bytes(promise.text("signedEntryTimestamp"), f"{fields.where}.inclusionPromise")
    logged = rekor.verify_set(entry, timestamp, trust.root.logs)
    stated = fields.optional_object("kindVersion")
    if stated is not None and (stated.text("kind"), stated.text("version")) != rekor.kind_of(entry.body):
        fields.fail("kindVersion is not the entry's")
    rekor.check_dsse(entry.body, envelope.signature, keyless.certificate_der(certificate), envelope.payload)
    return logged


def _proof(fields: Fields) -> rekor.InclusionProof:
    proof = fields.optional_object("inclusionProof")
    if proof is None:
        fields.fail("no inclusion proof")
    where = f"{fields.where}.inclusionProof"
    path = proof.items("hashes") if "hashes" in proof else []
    if not all(isinstance(item, str) for item in path):
        proof.fail("hashes must be texts")
    return rekor.InclusionProof(
        _number(proof, "logIndex"),
        _number(proof, "treeSize"),
        encodings.base64_bytes(proof.text("rootHash"), where),
        tuple(encodings.base64_bytes(str(item), where) for item in path),
        proof.object("checkpoint").text("envelope"),
    )


def _number(fields: Fields, name: str) -> int:
    # Protobuf's JSON writes 64-bit numbers as text and leaves zeros out.
    value = fields.raw(name) if name in fields else 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        return int(value)
    return 0 if value == 0 else fields.number(name)
