"""TLS 1.3 contexts whose certificate can be exchanged while connections run on them."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.errors import InputError
from p2pdist.pki.identity import Identity, Role, cluster_of, identity_of

_KNOWN = 4096  # certificates whose names are remembered


class TlsCredentials:
    """This process's certificate and the authority it trusts, in a `server` and a `client` context.

    Both contexts exist from the start and refuse every handshake until `use` gave them a certificate; `use` again
    exchanges it for new handshakes and leaves running connections alone. A server takes clients of every role; who may
    do what is asked of `identify`. The client context checks the name of the role: pass `Role.host` as server name.
    """

    def __init__(self, *, clients_required: bool = True) -> None:
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.server.verify_mode = ssl.CERT_REQUIRED if clients_required else ssl.CERT_OPTIONAL
        self.server.num_tickets = 0  # no resumption: every connection shows a certificate that holds now
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        self.certificate: x509.Certificate | None = None
        self.cluster = ""
        self._known: OrderedDict[bytes, Identity | None] = OrderedDict()
        self._trusted: set[bytes] = set()
        self._clusters: set[str] = set()

    def trust(self, authority: bytes) -> None:
        """Members are those whose certificates this authority (PEM) signed, or others that follow it in the text.

        Whom only an earlier call trusted is identified no longer; TLS itself knows those until the process ends.
        """
        parsed = certificates_of(authority)
        self.cluster = cluster_of(parsed[0])
        self._clusters = {cluster_of(one) for one in parsed}
        self._known.clear()
        for der in (one.public_bytes(Encoding.DER) for one in parsed):
            if der not in self._trusted:
                self._trusted.add(der)
                for context in (self.server, self.client):
                    context.load_verify_locations(cadata=der)

    def use(self, certificate: bytes, key: Ed25519PrivateKey, authority: bytes) -> None:
        """Show this certificate (PEM) from now on. InputError if it doesn't belong to the key."""
        parsed = _certificate(certificate)
        if parsed.public_key() != key.public_key():
            raise InputError("the certificate isn't for this key")
        identity_of(parsed)
        self.trust(authority)
        pem = certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for context in (self.server, self.client):
            _load(context, pem)
        self.certificate = parsed

    def identify(self, tls: object) -> Identity | None:
        """Who is on the other side of a connection; None if no member is, or of another cluster."""
        if not isinstance(tls, ssl.SSLObject | ssl.SSLSocket):
            return None
        der = tls.getpeercert(binary_form=True)
        if not der:
            return None
        if der not in self._known:
            self._known[der] = self._read(der)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return self._known[der]

    def node(self, tls: object) -> bytes | None:
        """The node on the other side; None if none is: a tracker's or an operator's certificate moves no chunks."""
        identity = self.identify(tls)
        return identity.key if identity is not None and identity.role is Role.NODE else None

    def _read(self, der: bytes) -> Identity | None:
        try:
            identity = identity_of(x509.load_der_x509_certificate(der))
        except (InputError, ValueError):
            return None
        return identity if identity.cluster in self._clusters else None


def insecure_context() -> ssl.SSLContext:
    """For the one question that precedes trust: what is your authority? The answer is checked against the token."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_certificate(tls: object) -> x509.Certificate | None:
    """The certificate that the other side showed, checked by TLS; None if it showed none."""
    der = tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
    return x509.load_der_x509_certificate(der) if der else None


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The issuing authority alone is trusted, also when its own certificate comes from another one.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    return context


def certificates_of(pem: bytes) -> list[x509.Certificate]:
    """One or more, as they follow each other. InputError if there is none."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InputError(f"not a certificate: {error}") from error


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InputError(f"not a certificate: {error}") from error


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL's binding reads files only: one in memory, so that no copy of the key is left on any disk."""
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        return
    handle = os.memfd_create("p2pdist", os.MFD_CLOEXEC)
    try:
        os.write(handle, pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
