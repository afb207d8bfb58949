"""TLS 1.3 contexts whose certificate can be exchanged while connections run on them."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections import OrderedDict
from typing import Any
from weakref import WeakSet

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.errors import InputError
from p2pdist.pki.identity import Identity, Role, cluster_of, identity_of

_KNOWN = 4096  # certificates whose names are remembered


class TlsCredentials:
    """This process's certificate and the authorities it trusts, in a `server` and a `client` context.

    Both contexts exist from the start and refuse every handshake until `use` gave them a certificate; `use` again
    exchanges it for new handshakes and leaves running connections alone, but those of authorities that are trusted no
    longer. A server takes clients of every role; who may do what is asked of `identify`. The client context checks the
    name of the role: pass `Role.host` as server name.
    """

    def __init__(self, *, clients_required: bool = True) -> None:
        self._clients_required = clients_required
        self.server = ExchangedContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ExchangedContext(ssl.PROTOCOL_TLS_CLIENT)
        self.certificate: x509.Certificate | None = None
        self.cluster = ""
        self._shown = b""  # certificate and key, PEM
        self._known: OrderedDict[bytes, Identity | None] = OrderedDict()
        self._trusted: list[x509.Certificate] = []
        self._clusters: set[str] = set()
        self._renew_contexts()

    def trust(self, authority: bytes) -> None:
        """Members are those whose certificates this authority (PEM) signed, or others that follow it in the text.

        Whom only an earlier call trusted is a member no longer: new handshakes fail, `identify` knows nobody, and on
        connections that there are not one byte more is read or written.
        """
        parsed = certificates_of(authority)
        added, left = set(parsed) - set(self._trusted), set(self._trusted) - set(parsed)
        self._trusted = parsed
        self.cluster = cluster_of(parsed[0])
        self._clusters = {cluster_of(one) for one in parsed}
        self._known.clear()
        if left:
            self._renew_contexts()
            self._end_strangers()
            return
        for one in added:
            for context in (self.server, self.client):
                context.in_force.load_verify_locations(cadata=one.public_bytes(Encoding.DER))

    def _renew_contexts(self) -> None:
        """OpenSSL's contexts can be told to trust one authority more, never one less."""
        server, client = _context(ssl.PROTOCOL_TLS_SERVER), _context(ssl.PROTOCOL_TLS_CLIENT)
        server.verify_mode = ssl.CERT_REQUIRED if self._clients_required else ssl.CERT_OPTIONAL
        server.num_tickets = 0  # no resumption: every connection shows a certificate that holds now
        for context in (server, client):
            for one in self._trusted:
                context.load_verify_locations(cadata=one.public_bytes(Encoding.DER))
            if self._shown:
                _load(context, self._shown)
        self.server.in_force, self.client.in_force = server, client

    def _end_strangers(self) -> None:
        for connection in [*self.server.opened, *self.client.opened]:
            try:
                shown = connection.getpeercert(binary_form=True) is not None
            except ValueError:  # in the middle of a handshake
                connection.over = True
                continue
            connection.over = connection.over or (shown and self.identify(connection) is None)

    def use(self, certificate: bytes, key: Ed25519PrivateKey, authority: bytes) -> None:
        """Show this certificate (PEM) from now on. InputError if it doesn't belong to the key."""
        parsed = _certificate(certificate)
        if parsed.public_key() != key.public_key():
            raise InputError("the certificate isn't for this key")
        identity_of(parsed)
        self.trust(authority)
        self._shown = certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for context in (self.server, self.client):
            _load(context.in_force, self._shown)
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

    def sibling(self, tls: object) -> bytes | None:
        """The node on the other side, if the authority that signed our own certificate signed its, too."""
        identity = self.identify(tls)
        alike = identity is not None and identity.role is Role.NODE and identity.cluster == self.cluster
        return identity.key if identity is not None and alike else None

    def _read(self, der: bytes) -> Identity | None:
        """TLS has checked it, but perhaps when others were trusted, who can name any cluster in what they sign."""
        try:
            certificate = x509.load_der_x509_certificate(der)
            identity = identity_of(certificate)
        except (InputError, ValueError):
            return None
        signed = any(_signed(certificate, one) for one in self._trusted)
        return identity if signed and identity.cluster in self._clusters else None


class ExchangedContext(ssl.SSLContext):
    """What listeners and dialers hold for ever: each connection is made by the context that is in force then."""

    in_force: ssl.SSLContext
    opened: WeakSet[_Connection]

    def __init__(self, _: int) -> None:
        self.verify_mode = ssl.CERT_REQUIRED  # and no certificate, no authority: by itself it takes nobody
        self.opened = WeakSet()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """See `ssl`; this is how asyncio and uvloop begin a connection."""
        made = self.in_force.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(made, _Connection)
        self.opened.add(made)
        return made

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """See `ssl`; for short blocking connections, which aren't ended from here."""
        return self.in_force.wrap_socket(*args, **options)


class _Connection(ssl.SSLObject):
    """`over`: whoever is on the other side is no member any more; its transport is closed at the next byte."""

    over = False

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        self._check()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        self._check()
        return super().write(data)

    def _check(self) -> None:
        if self.over:
            raise ssl.SSLError(1, "the authority that signed the other side's certificate is not trusted any more")


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


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
    context.sslobject_class = _Connection
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
