"""A client of fake registries; retries without pauses."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import stamina
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.registry import FakeRegistry

from p2pdist.oci import Repository
from p2pdist.upstream import Credentials, Registry, Upstreams, UpstreamSettings

# A deadline per example fails by chance on a machine that is shared.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


class Client:
    """A registry's client, and the repository that the tests ask for."""

    def __init__(self, registry: Registry, repository: Repository, upstreams: Upstreams) -> None:
        self.registry, self.repository, self.upstreams = registry, repository, upstreams

    async def read(self, digest: Any, **options: Any) -> bytes:
        async with self.registry.read_blob(self.repository, digest, **options) as body:
            return b"".join([piece async for piece in body])


MakeClient = Callable[..., Awaitable[Client]]


@pytest.fixture
async def client_of() -> AsyncIterator[MakeClient]:
    """Makes a client of a fake registry: `await client_of(fake, credentials=..., clock=..., stall_timeout=...)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            fake: FakeRegistry,
            credentials: Credentials | None = None,
            *,
            clock: Any = None,
            wall: Any = None,
            **settings: Any,
        ) -> Client:
            clocks = {name: value for name, value in (("clock", clock), ("wall", wall)) if value is not None}
            listed = [UpstreamSettings(fake.name, **{"url": fake.url, **settings})]
            upstreams = await stack.enter_async_context(Upstreams(listed, credentials or Credentials(), **clocks))
            return Client(upstreams.registry(fake.name), Repository(fake.name, "library/a"), upstreams)

        yield make


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def login(tmp_path: Path):
    def write(registry: FakeRegistry, entry: Mapping[str, Any] | None = None) -> Credentials:
        file = tmp_path / "config.json"
        entry = entry if entry is not None else {"username": "alice", "password": "hunter2"}
        file.write_text(json.dumps({"auths": {registry.name: entry}}))
        return Credentials(file)

    return write


@pytest.fixture
def server_tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and the file of the certificate (its own authority) that it shows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake registry")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, secret = tmp_path / "ca.pem", tmp_path / "key.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca, secret)
    return context, ca
