"""Signing certificates of sigstore: chain, purpose, identity, and the certificate transparency timestamp.

Chains are built by `cryptography`'s verifier with its web PKI rules, but for the purpose: its default is TLS client
authentication, here it is code signing, from the leaf up. Validity is judged at the time the transparency log
vouches for: the certificates live for minutes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import verification
from cryptography.x509.certificate_transparency import LogEntryType, SignedCertificateTimestamp, Version
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from p2pdist.trust import keys, limits
from p2pdist.trust.refusal import Refused, refusing, shown
from p2pdist.trust.signatures.der import utf8_string

# Fulcio, docs/oid-info.md: the issuer of the OIDC token as raw text (deprecated), and as a DER UTF8String.
_ISSUER_V1 = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")


@dataclass(frozen=True, slots=True)
class Authority:
    """A root with the intermediates that belong to it, and when its certificates count (None: without end)."""

    root: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """A transparency log (Rekor, or certificate transparency): its id, its key, and when it was in use."""

    log_id: bytes
    key: keys.TrustedKey
    valid_from: datetime | None = None
    valid_to: datetime | None = None

    def in_use(self, at: datetime) -> bool:
        """Whether it was in use at that time."""
        return within(at, self.valid_from, self.valid_to)


def within(at: datetime, start: datetime | None, end: datetime | None) -> bool:
    """Whether `at` is in a closed interval of which an end may be open."""
    return (start is None or start <= at) and (end is None or at <= end)


def load_der(der: bytes, what: str) -> x509.Certificate:
    """The certificate that `der` is, every part of it readable."""
    with refusing(what):
        certificate = x509.load_der_x509_certificate(der)
        # `cryptography` parses these when they are asked for: what is broken shows here and not later.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
        return certificate


def verify_chain(
    leaf: x509.Certificate,
    authorities: Sequence[Authority],
    extra: Sequence[x509.Certificate],
    at: datetime,
) -> list[x509.Certificate]:
    """The chain from `leaf` to a root of `authorities`, for code signing, valid at `at`.

    Args:
        leaf: the signing certificate.
        authorities: those whose window doesn't hold `at` are passed over.
        extra: intermediates that came with the signature; nothing is believed of them.
        at: the time at which every certificate of the chain must be valid.

    Raises:
        Refused: no such chain.
    """
    reasons = []
    for authority in authorities:
        if not within(at, authority.valid_from, authority.valid_to):
            reasons.append("a certificate authority was not in use at the time of signing")
            continue
        try:
            return _chain(leaf, authority, extra, at)
        except Refused as error:
            reasons.append(str(error))
    raise Refused(f"certificate: {'; '.join(reasons) or 'no certificate authority is trusted'}")


def _chain(
    leaf: x509.Certificate, authority: Authority, extra: Sequence[x509.Certificate], at: datetime
) -> list[x509.Certificate]:
    purpose = x509.ExtendedKeyUsage

    def leaf_signs_code(
        _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage
    ) -> None:
        if ExtendedKeyUsageOID.CODE_SIGNING not in usage:
            raise ValueError("not for code signing")

    def ca_signs_code(
        _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None
    ) -> None:
        if usage is not None and not _allows_code_signing(usage):
            raise ValueError("an authority not for code signing")

    agnostic = verification.Criticality.AGNOSTIC
    leaf_policy = verification.ExtensionPolicy.webpki_defaults_ee().require_present(purpose, agnostic, leaf_signs_code)
    ca_policy = verification.ExtensionPolicy.webpki_defaults_ca().may_be_present(purpose, agnostic, ca_signs_code)
    with refusing("a trust root"):
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store([authority.root]))
            .time(at.astimezone(UTC).replace(tzinfo=None))
            .extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy)
            .build_client_verifier()
        )
    try:
        with refusing("certificate"):
            return list(verifier.verify(leaf, [*authority.intermediates, *extra]).chain)
    except verification.VerificationError as error:
        raise Refused(f"no chain to {shown(authority.root.subject.rfc4514_string())}: {shown(str(error))}") from error


def _allows_code_signing(usage: x509.ExtendedKeyUsage) -> bool:
    return ExtendedKeyUsageOID.CODE_SIGNING in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def check_life(certificate: x509.Certificate, at: datetime) -> None:
    """Refused unless `at` is inside the certificate's life."""
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise Refused(
            f"the certificate lived from {certificate.not_valid_before_utc:%FT%TZ} to"
            f" {certificate.not_valid_after_utc:%FT%TZ}; the signature was logged at {at:%FT%TZ}"
        )


def check_signs(certificate: x509.Certificate) -> None:
    """Refused unless its key usage has digital signature."""
    with refusing("certificate"):
        if not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            raise Refused("certificate: its key usage is not digital signature")


# --- whose it is --------------------------------------------------------------------------------------------------


def subjects(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """The e-mail addresses and the URIs of the subject alternative name."""
    with refusing("certificate"):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        emails = names.get_values_for_type(x509.RFC822Name)
        return emails, names.get_values_for_type(x509.UniformResourceIdentifier)


def hostnames(certificate: x509.Certificate) -> list[str]:
    """The DNS names of the subject alternative name, as they are: a wildcard is no host name here."""
    with refusing("certificate"):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)


def oidc_issuer(certificate: x509.Certificate) -> str:
    """Who vouched for the subject, as Fulcio wrote it; Refused where its two forms differ or neither is there."""
    found = []
    for extension in certificate.extensions:
        if extension.oid in (_ISSUER_V1, _ISSUER_V2) and isinstance(extension.value, x509.UnrecognizedExtension):
            value = extension.value.value
            if extension.oid == _ISSUER_V2:
                found.append(utf8_string(value, "the certificate's issuer extension"))
            else:
                with refusing("the certificate's issuer extension"):
                    found.append(value.decode("utf-8"))
    if not found:
        raise Refused("the certificate names no OIDC issuer")
    if len(set(found)) != 1:
        raise Refused("the certificate names two OIDC issuers")
    return found[0]


# --- certificate transparency -------------------------------------------------------------------------------------


def verify_sct(certificate: x509.Certificate, issuer: x509.Certificate, logs: Sequence[Log]) -> None:
    """Refused unless one of the certificate's embedded SCTs is signed by one of `logs` (RFC 6962 section 3.2)."""
    with refusing("certificate transparency"):
        try:
            found = certificate.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps).value
        except x509.ExtensionNotFound as error:
            raise Refused("the certificate has no certificate transparency timestamp (SCT)") from error
        reasons = []
        for sct in list(found)[: limits.SCTS]:
            try:
                _verify_one_sct(certificate, issuer, sct, logs)
                return
            except Refused as error:
                reasons.append(str(error))
    raise Refused(f"certificate transparency: {'; '.join(reasons) or 'no timestamp'}")


def _verify_one_sct(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    sct: SignedCertificateTimestamp,
    logs: Sequence[Log],
) -> None:
    stamped = sct.timestamp.replace(tzinfo=UTC)  # `cryptography` gives it naive
    log = next((log for log in logs if log.log_id == sct.log_id), None)
    if log is None:
        raise Refused("by a log that isn't trusted")
    if not log.in_use(stamped):
        raise Refused("by a log that was not in use then")
    if sct.version is not Version.v1 or sct.entry_type is not LogEntryType.PRE_CERTIFICATE:
        raise Refused("of an unknown kind")
    if not isinstance(sct.signature_hash_algorithm, hashes.SHA256):
        raise Refused("not with SHA-256")
    milliseconds = round((stamped - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    issuer_key = issuer.public_key()
    tbs = certificate.tbs_precertificate_bytes
    signed = struct.pack(">BBQH", 0, 0, milliseconds, 1)
    signed += hashlib.sha256(keys.public_der(keys.supported(issuer_key, "the issuer's key"))).digest()
    signed += len(tbs).to_bytes(3, "big") + tbs
    signed += struct.pack(">H", len(sct.extension_bytes)) + sct.extension_bytes
    keys.verify(log.key.key, sct.signature, signed, "timestamp")
