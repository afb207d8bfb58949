"""An API server as far as TokenReview (authentication.k8s.io/v1) goes, over TLS with an authority of its own."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NODE_NAME = "authentication.kubernetes.io/node-name"


@dataclass
class Token:
    """What the cluster knows of one token."""

    account: str = "p2pdist:p2pdist-agent"
    audiences: tuple[str, ...] = ("p2pdist",)
    expired: bool = False
    extra: Mapping[str, list[str]] = field(default_factory=lambda: {NODE_NAME: ["worker-7"]})


class ApiServer:
    """`tokens` are those that it knows; `own`: the token that a tracker must come with."""

    def __init__(self, directory: Path) -> None:
        self.tokens: dict[str, Token] = {}
        self.own = "tracker-token"
        self.status = 201  # what it answers; another one: it is unwell, or access rules are missing
        self.body: bytes | None = None  # in place of a TokenReview
        self.knows_audiences = True
        self.asked: list[dict[str, Any]] = []
        self.ca_file = directory / "kube-ca.crt"
        self.token_file = directory / "own-token"
        self.token_file.write_text(self.own + "\n")
        self._certificate = directory / "kube.pem"
        _make_certificate(self.ca_file, self._certificate)
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self._review)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _review(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.own}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        review = await request.json()
        self.asked.append(review)
        if self.status != 201:
            return web.json_response({"kind": "Status", "code": self.status}, status=self.status)
        if self.body is not None:
            return web.Response(status=201, body=self.body)
        return web.json_response(review | {"status": self._answer(review["spec"])}, status=201)

    def _answer(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        known = self.tokens.get(spec["token"])
        if known is None or known.expired:
            return {"user": {}, "error": "[invalid bearer token, service account token has expired]"}
        common = [one for one in spec["audiences"] if one in known.audiences]
        if self.knows_audiences and not common:
            return {"user": {}, "error": f"token audiences {known.audiences} is invalid for {spec['audiences']}"}
        user = {
            "username": f"system:serviceaccount:{known.account}",
            "uid": "0ad6a8de",
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": dict(known.extra),
        }
        status = {"authenticated": True, "user": user}
        return status | ({"audiences": common} if self.knows_audiences else {})


def _make_certificate(authority_file: Path, server_file: Path) -> None:
    now = datetime.now(UTC)
    keys = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("kubernetes", "kube-apiserver")]
    made = []
    for key, name, is_authority in zip(keys, names, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made.append(builder.sign(keys[0], SHA256()))
    authority_file.write_bytes(made[0].public_bytes(Encoding.PEM))
    private = keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    server_file.write_bytes(private + made[1].public_bytes(Encoding.PEM))
