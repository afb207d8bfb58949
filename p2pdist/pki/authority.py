"""The cluster's certificate authority: made once, or brought from outside; signs short-lived certificates.

Everything in a certificate but its key is the authority's own: of a request only the key, and the proof that the
asker holds it, is used. Time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pdist.errors import ConfigError, InputError, StorageError
from p2pdist.pki.files import read_secret, write_secret
from p2pdist.pki.identity import Identity, Role, cluster_of, identity_of

_SKEW = timedelta(minutes=5)  # clocks of nodes differ
_LIFE = timedelta(days=3650)
_MAX_REQUEST = 16 * 1024  # bytes
Key = Ed25519PrivateKey | EllipticCurvePrivateKey


class Authority:
    """Signs certificates for one cluster."""

    def __init__(self, certificate: x509.Certificate, key: Key, others: Sequence[x509.Certificate] = ()) -> None:
        self.others = tuple(others)  # authorities that members trust beside it, while one takes the place of the other
        self.certificate = certificate
        self.cluster = cluster_of(certificate)
        self._key = key

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes that everyone who has this authority's key comes to, and nobody else (HKDF, RFC 5869)."""
        if isinstance(self._key, Ed25519PrivateKey):
            secret = self._key.private_bytes_raw()
        else:
            secret = self._key.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(SHA256(), 32, salt=None, info=f"p2pdist {purpose}".encode()).derive(secret)

    @property
    def bundle(self) -> bytes:
        """What members are to trust: its certificate, and behind it the others."""
        return self.pem + b"".join(other.public_bytes(Encoding.PEM) for other in self.others)

    @classmethod
    def create(cls, now: float) -> Authority:
        """A new one; `now` in Unix seconds."""
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pdist cluster")])
        start = datetime.fromtimestamp(now, UTC)
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _SKEW)
            .not_valid_after(start + _LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, None)
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path) -> Authority | None:
        """The authority in `directory`: `tls.crt`, `tls.key` as cert-manager lays them out (`ca.crt` isn't needed).

        `trusted.crt`, where there is one: further authorities whose members belong to the cluster (docs/security.md,
        "Another authority").

        None: neither is there.

        Raises:
            StorageError: a file can't be read.
            ConfigError: they aren't an authority's certificate and its key, or of a kind that isn't supported.
        """
        certificate, key = read_secret(directory / "tls.crt"), read_secret(directory / "tls.key")
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            raise StorageError(f"{directory}: one of tls.crt and tls.key is missing; restore it")
        try:
            parsed = x509.load_pem_x509_certificates(certificate)[0]
            private = load_pem_private_key(key, None)
            basic = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
            raise ConfigError(f"{directory}: not an authority's tls.crt and tls.key: {error}") from error
        p256 = isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1)
        if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey) or not (
            p256 or isinstance(private, Ed25519PrivateKey)
        ):
            raise ConfigError(f"{directory}: tls.key: wanted an Ed25519 or P-256 key")
        if not basic.ca:
            raise ConfigError(f"{directory}: tls.crt is not the certificate of an authority (CA:TRUE)")
        if private.public_key() != parsed.public_key():
            raise ConfigError(f"{directory}: tls.key is not the key of tls.crt")
        try:
            others = x509.load_pem_x509_certificates(read_secret(directory / "trusted.crt") or pem_of(parsed))
        except ValueError as error:
            raise ConfigError(f"{directory}: trusted.crt has no certificate of an authority: {error}") from error
        return cls(parsed, private, [other for other in others if other != parsed])

    @classmethod
    def keep(cls, directory: Path, now: float) -> Authority:
        """The one in `directory`, made there at the first time. Of several processes that do so the first wins."""
        found = cls.load(directory)
        if found is not None:
            return found
        made = cls.create(now)
        key = made._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_secret(directory / "authority.pem", key + made.pem, replace=False)  # both at once: never a key alone
        whole = read_secret(directory / "authority.pem") or b""
        border = whole.find(b"-----BEGIN CERTIFICATE")
        write_secret(directory / "tls.key", whole[:border])
        write_secret(directory / "tls.crt", whole[border:])
        found = cls.load(directory)
        assert found is not None
        return found

    def issue(
        self, public: Ed25519PublicKey, role: Role, labels: Mapping[str, str], now: float, lifetime: float
    ) -> bytes:
        """A certificate (PEM) for a key whose holder is known to be that member; seconds, Unix time."""
        identity = Identity(self.cluster, role, public.public_bytes_raw(), labels)
        start = datetime.fromtimestamp(now, UTC)
        end = min(start + timedelta(seconds=lifetime), self.certificate.not_valid_after_utc)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in identity.uris]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role} {identity.key.hex()[:16]}")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _SKEW)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(role.host), *names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256() if isinstance(self._key, EllipticCurvePrivateKey) else None)
        )
        return certificate.public_bytes(Encoding.PEM)

    def renew(self, old: x509.Certificate, request: bytes, now: float, lifetime: float) -> bytes:
        """A new certificate for the holder of `old`, which TLS has checked. InputError if it asks for another key."""
        identity = identity_of(old)
        public = requested_key(request)
        if identity.cluster not in {self.cluster, *map(cluster_of, self.others)}:
            raise InputError("the certificate is of another cluster")
        if public.public_bytes_raw() != identity.key:
            raise InputError("the request is for another key than the certificate that it came with")
        return self.issue(public, identity.role, identity.labels, now, lifetime)


def pem_of(certificate: x509.Certificate) -> bytes:
    """Its text."""
    return certificate.public_bytes(Encoding.PEM)


def request_for(key: Ed25519PrivateKey) -> bytes:
    """A certificate request (PKCS #10, PEM): the key, and the proof that we hold it; no names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def requested_key(request: bytes) -> Ed25519PublicKey:
    """The key of a request, proved to be the asker's. Raises InputError."""
    if len(request) > _MAX_REQUEST:
        raise InputError(f"a certificate request of {len(request)} bytes; at most {_MAX_REQUEST} are taken")
    try:
        parsed = x509.load_pem_x509_csr(request)
        public = parsed.public_key()
        holds = parsed.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InputError(f"not a certificate request: {error}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise InputError("a node's key is an Ed25519 key; the request has another kind")
    if not holds:
        raise InputError("the request's signature is wrong: the asker doesn't hold its key")
    return public


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
