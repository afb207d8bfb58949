"""Certificates, tokens and contexts: what they promise, and who tries to get round it. Time is an argument."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.errors import ConfigError, InputError, StorageError
from p2pdist.pki import Authority, JoinToken, Role, TlsCredentials, identity_of, request_for
from p2pdist.pki.authority import requested_key

NOW = datetime.now(UTC).timestamp()
DAY = 86_400.0


def member(authority: Authority, role: Role = Role.NODE, now: float = NOW, lifetime: float = DAY) -> TlsCredentials:
    key = Ed25519PrivateKey.generate()
    credentials = TlsCredentials()
    credentials.use(authority.issue(key.public_key(), role, {}, now, lifetime), key, authority.pem)
    return credentials


def handshake(server: TlsCredentials, client: TlsCredentials, name: str = Role.NODE.host) -> tuple[ssl.SSLObject, ...]:
    """Both sides in memory. Raises ssl.SSLError as soon as one refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.server.wrap_bio(to_server, to_client, server_side=True),
        client.client.wrap_bio(to_client, to_server, server_hostname=name),
    ]
    done: set[int] = set()
    for _ in range(6):
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    assert done == {0, 1}
    return tuple(sides)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(NOW)


def test_two_members_speak_tls_1_3_and_each_knows_the_others_node_key(authority: Authority) -> None:
    server, client = member(authority), member(authority)
    at_server, at_client = handshake(server, client)
    assert at_server.version() == "TLSv1.3"
    assert server.node(at_server) == identity_of(client.certificate).key  # type: ignore[arg-type]
    assert client.node(at_client) == identity_of(server.certificate).key  # type: ignore[arg-type]


def test_a_certificate_of_another_cluster_is_refused_by_both_sides(authority: Authority) -> None:
    foreign = member(Authority.create(NOW))
    with pytest.raises(ssl.SSLError):
        handshake(member(authority), foreign)
    with pytest.raises(ssl.SSLError):
        handshake(foreign, member(authority))


def test_another_clusters_certificate_that_trusts_us_is_refused_too(authority: Authority) -> None:
    foreign = member(Authority.create(NOW))
    foreign.trust(authority.pem)  # it would take us; we must not take it
    with pytest.raises(ssl.SSLError):
        handshake(member(authority), foreign)


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)expired"):
        handshake(member(authority), member(authority, now=NOW - 2 * DAY))


def test_a_client_without_a_certificate_is_refused(authority: Authority) -> None:
    nobody = TlsCredentials()
    nobody.trust(authority.pem)
    with pytest.raises(ssl.SSLError):
        handshake(member(authority), nobody)


def test_a_node_that_plays_tracker_is_refused_by_tls_itself(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)hostname"):
        handshake(member(authority), member(authority), Role.TRACKER.host)


def test_a_trackers_or_operators_certificate_is_no_node(authority: Authority) -> None:
    server = member(authority)
    for role in (Role.TRACKER, Role.ADMIN):
        at_server, _ = handshake(server, member(authority, role))
        assert server.node(at_server) is None
        assert server.identify(at_server) is not None


def test_nothing_older_than_tls_1_3_is_spoken(authority: Authority) -> None:
    old = member(authority)
    old.client.in_force.minimum_version = ssl.TLSVersion.TLSv1_2
    old.client.in_force.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(member(authority), old)


def test_a_new_certificate_serves_new_handshakes_and_leaves_running_ones_alone(authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    server, client = TlsCredentials(), member(authority)
    server.use(authority.issue(key.public_key(), Role.NODE, {}, NOW, DAY), key, authority.pem)
    at_server, at_client = handshake(server, client)
    before = at_client.getpeercert(binary_form=True)
    server.use(authority.issue(key.public_key(), Role.NODE, {}, NOW, DAY), key, authority.pem)
    _, again = handshake(server, client)
    assert again.getpeercert(binary_form=True) != before
    at_server.write(b"still here")
    assert at_client.read(100) == b"still here"


def test_contexts_without_a_certificate_refuse_everybody(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(TlsCredentials(), member(authority))


def test_of_a_request_only_the_proved_key_counts(authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    evil = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(Role.TRACKER.host)]),
            critical=False,
        )
        .sign(key, None)
        .public_bytes(Encoding.PEM)
    )
    issued = x509.load_pem_x509_certificate(authority.issue(requested_key(evil), Role.NODE, {}, NOW, DAY))
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node.p2pdist"]
    assert identity_of(issued).role is Role.NODE


def test_a_request_for_a_key_that_the_asker_does_not_hold_is_refused() -> None:
    mine, other = (x509.load_pem_x509_csr(request_for(Ed25519PrivateKey.generate())) for _ in range(2))
    raw = mine.public_bytes(Encoding.DER).replace(
        mine.public_key().public_bytes_raw(),  # type: ignore[union-attr]
        other.public_key().public_bytes_raw(),  # type: ignore[union-attr]
    )
    forged = x509.load_der_x509_csr(raw).public_bytes(Encoding.PEM)
    with pytest.raises(InputError, match="hold its key"):
        requested_key(forged)


@pytest.mark.parametrize("request_", [b"", b"x" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\n", b"y" * 20_000])
def test_what_is_no_request_is_refused(request_: bytes) -> None:
    with pytest.raises(InputError):
        requested_key(request_)


def test_a_request_with_a_p256_key_is_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(InputError, match="Ed25519"):
        requested_key(request)


def test_renewal_keeps_role_and_labels_and_refuses_another_key(authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    labels = {"zone": "a/b=c d", "rack": "7"}
    old = x509.load_pem_x509_certificate(authority.issue(key.public_key(), Role.NODE, labels, NOW, DAY))
    new = x509.load_pem_x509_certificate(authority.renew(old, request_for(key), NOW + DAY / 2, DAY))
    assert identity_of(new) == identity_of(old)
    assert identity_of(new).labels == labels
    assert new.not_valid_after_utc - old.not_valid_after_utc == timedelta(seconds=DAY / 2)
    with pytest.raises(InputError, match="another key"):
        authority.renew(old, request_for(Ed25519PrivateKey.generate()), NOW, DAY)
    with pytest.raises(InputError, match="another cluster"):
        Authority.create(NOW).renew(old, request_for(key), NOW, DAY)


def test_a_certificate_whose_name_is_another_key_is_no_identity() -> None:
    key, name = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + DAY, UTC))
    )
    uri = x509.UniformResourceIdentifier(f"p2pdist://c/node/{name}")
    with pytest.raises(InputError, match="isn't the key"):
        identity_of(builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False).sign(key, None))
    with pytest.raises(InputError):
        identity_of(builder.sign(key, None))


def test_the_authority_is_made_once_and_only_its_owner_can_read_its_key(tmp_path: Path) -> None:
    first = Authority.keep(tmp_path / "ca", NOW)
    again = Authority.keep(tmp_path / "ca", NOW)
    assert first.certificate == again.certificate
    for name in ("tls.key", "authority.pem"):
        assert stat.S_IMODE((tmp_path / "ca" / name).stat().st_mode) == 0o600


def test_a_crash_between_the_authoritys_files_is_mended_at_the_next_start(tmp_path: Path) -> None:
    first = Authority.keep(tmp_path, NOW)
    for name in ("tls.key", "tls.crt"):
        (tmp_path / name).unlink()
    assert Authority.keep(tmp_path, NOW).certificate == first.certificate


def test_half_an_authority_is_an_error_and_never_replaced(tmp_path: Path) -> None:
    Authority.keep(tmp_path, NOW)
    (tmp_path / "authority.pem").unlink()
    (tmp_path / "tls.crt").unlink()
    with pytest.raises(StorageError, match="missing"):
        Authority.keep(tmp_path, NOW)


def test_an_authority_from_outside_in_cert_managers_layout_signs_members(tmp_path: Path) -> None:
    """P-256, itself signed by a root that is not trusted: the issuing authority alone makes members."""
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = Authority.create(NOW).certificate.extensions.get_extension_for_class(x509.KeyUsage).value

    def certificate(subject: str, public: ec.EllipticCurvePublicKey, length: int) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(NOW - 60, UTC))
            .not_valid_after(datetime.fromtimestamp(NOW + 10 * DAY, UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
            .sign(root, SHA256())
        )

    (tmp_path / "ca.crt").write_bytes(certificate("root", root.public_key(), 1).public_bytes(Encoding.PEM))
    (tmp_path / "tls.crt").write_bytes(certificate("issuing", key.public_key(), 0).public_bytes(Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    outside = Authority.load(tmp_path)
    assert outside is not None
    handshake(member(outside), member(outside))
    with pytest.raises(ssl.SSLError):
        handshake(member(outside), member(Authority.create(NOW)))


def test_a_leaf_certificate_is_no_authority(tmp_path: Path, authority: Authority) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "tls.crt").write_bytes(authority.issue(key.public_key(), Role.NODE, {}, NOW, DAY))
    (tmp_path / "tls.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="not the certificate of an authority"):
        Authority.load(tmp_path)


def test_a_token_names_the_authority_and_hides_its_secret(authority: Authority) -> None:
    token = JoinToken(authority.certificate.fingerprint(SHA256()), b"s" * 32)
    assert JoinToken.parse(f"  {token}\n") == token
    token.is_of(authority.certificate)
    with pytest.raises(InputError, match="another cluster"):
        token.is_of(Authority.create(NOW).certificate)
    secret = str(token).split(".")[2]
    assert secret not in repr(token)
    with pytest.raises(ConfigError) as caught:
        JoinToken.parse(str(token) + "!")
    assert secret not in str(caught.value)


@pytest.mark.parametrize("text", ["", "p2pdist1", "p2pdist1..", "p2pdist1.AA.AA", "other.AAAA.AAAA", "p2pdist1.é.é"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        JoinToken.parse(text)
