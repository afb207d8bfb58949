"""notation's certificate chains (signature-specification.md, "Certificate Requirements").

The envelope brings the whole chain, leaf first, root last and self-signed; nothing is built or fetched. Each
certificate must be issued by the next, the leaf be for signing code and nothing else, the others be authorities.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from p2pdist.trust.notation.envelope import algorithm_of
from p2pdist.trust.refusal import Refused, refusing, shown

_NOT_FOR_CODE = {
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ExtendedKeyUsageOID.TIME_STAMPING,
    ExtendedKeyUsageOID.OCSP_SIGNING,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.CERTIFICATE_POLICIES,
}


def check_chain(chain: Sequence[x509.Certificate]) -> None:
    """Refused unless `chain` is a code signing chain by the rules above. Validity in time is judged elsewhere."""
    with refusing("certificate chain"):
        for number, certificate in enumerate(chain):
            _check_extensions(certificate)
            if number == len(chain) - 1:
                if not _issued_by(certificate, certificate):
                    raise Refused(f"the last certificate, {name(certificate)}, is not self-signed")
            else:
                if _issued_by(certificate, certificate):
                    raise Refused(f"{name(certificate)} is self-signed, but not the last of the chain")
                if not _issued_by(certificate, chain[number + 1]):
                    raise Refused(f"{name(certificate)} is not issued by {name(chain[number + 1])}")
            if number == 0:
                _check_leaf(certificate)
            else:
                _check_authority(certificate, number - 1)


def revocable(chain: Sequence[x509.Certificate]) -> str | None:
    """The name of a certificate whose revocation would have to be asked somewhere; None when there is none."""
    pointers = (ExtensionOID.CRL_DISTRIBUTION_POINTS, ExtensionOID.AUTHORITY_INFORMATION_ACCESS)
    for certificate in chain[:-1]:  # nobody revokes a root
        for extension in certificate.extensions:
            if extension.oid in pointers:
                return name(certificate)
    return None


def name(certificate: x509.Certificate) -> str:
    """The subject, short and printable."""
    return shown(certificate.subject.rfc4514_string())


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        raise Refused(f"{name(certificate)} is signed with a weak or unknown hash")
    try:
        with refusing("certificate"):
            certificate.verify_directly_issued_by(issuer)
    except Refused:
        return False
    return True


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Refused(f"{name(certificate)} has the critical extension {extension.oid.dotted_string}")


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage:
    extension = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    if not extension.critical:
        raise Refused(f"{name(certificate)}: its key usage is not critical")
    return extension.value


def _check_leaf(leaf: x509.Certificate) -> None:
    algorithm_of(leaf)
    usage = _key_usage(leaf)
    others = (usage.key_encipherment, usage.data_encipherment, usage.key_agreement, usage.key_cert_sign, usage.crl_sign)
    if not usage.digital_signature or any(others):
        raise Refused(f"{name(leaf)}: its key usage must be digital signature only")
    for extension in leaf.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise Refused(f"{name(leaf)} is an authority, not a signer")
        if isinstance(value, x509.ExtendedKeyUsage):
            purposes = set(value)
            if ExtendedKeyUsageOID.CODE_SIGNING not in purposes or purposes & _NOT_FOR_CODE:
                raise Refused(f"{name(leaf)}: its extended key usage is not code signing only")


def _check_authority(authority: x509.Certificate, below: int) -> None:
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    if not constraints.critical or not constraints.value.ca:
        raise Refused(f"{name(authority)} is not an authority")
    if constraints.value.path_length is not None and constraints.value.path_length < below:
        raise Refused(f"{name(authority)} allows {constraints.value.path_length} authorities below it, got {below}")
    if not _key_usage(authority).key_cert_sign:
        raise Refused(f"{name(authority)}: its key usage has no certificate signing")
