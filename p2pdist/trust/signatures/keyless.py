"""Signatures by identity instead of key: a certificate that lived for minutes, a log entry that says when. Offline.

A signature counts when the log took it inside its certificate's life, the certificate chains to the trust root for
code signing, certificate transparency has seen it, and subject and issuer are exactly the trusted ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from p2pdist.trust import keys
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures import certificates
from p2pdist.trust.signatures.certificates import Authority, Log


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """What a trusted_root.json holds: certificate authorities, Rekor logs, certificate transparency logs."""

    authorities: tuple[Authority, ...]
    logs: tuple[Log, ...]
    ct_logs: tuple[Log, ...]
    origin: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who must have signed: the certificate's subject (an e-mail address or URI) and OIDC issuer, both exactly."""

    subject: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.subject} by {self.issuer}"


@dataclass(frozen=True, slots=True)
class KeylessTrust:
    """A trust root and the one identity that is trusted under it."""

    root: TrustRoot
    identity: Identity

    def __str__(self) -> str:
        return f"identity {self.identity} under {self.root.origin}"


def check_certificate(certificate: x509.Certificate, trust: KeylessTrust, logged: datetime) -> None:
    """Refused unless the certificate is the trusted identity's and was good when the log took the signature."""
    certificates.check_life(certificate, logged)
    chain = certificates.verify_chain(certificate, trust.root.authorities, (), logged)
    certificates.check_signs(certificate)
    certificates.verify_sct(certificate, chain[1], trust.root.ct_logs)
    check_identity(certificate, trust.identity)


def check_identity(certificate: x509.Certificate, wanted: Identity) -> None:
    """Refused unless subject and issuer are exactly `wanted`'s."""
    issuer = certificates.oidc_issuer(certificate)
    if issuer != wanted.issuer:
        raise Refused(f"the certificate's OIDC issuer is {shown(issuer)}, wanted {wanted.issuer}")
    emails, uris = certificates.subjects(certificate)
    if wanted.subject not in emails + uris:
        got = ", ".join(shown(name) for name in (emails + uris)[:4]) or "none"
        raise Refused(f"the certificate's subject is {got}, wanted {wanted.subject}")


def certificate_key(certificate: x509.Certificate) -> keys.PublicKey:
    """The certificate's public key."""
    return keys.supported(certificate.public_key(), "the certificate's key")


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The certificate's bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)
