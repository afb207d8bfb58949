"""The door for new members: a join token and a certificate request in, a short-lived certificate out.

`GET /v1/authority` and `POST /v1/enrol` need no certificate, `POST /v1/renew` the one that is to be renewed. The token
is a secret; a client sends it only after it has checked the authority against the token's fingerprint.
"""

from __future__ import annotations

import asyncio
import binascii
import math
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from p2pdist.errors import InputError, StorageError
from p2pdist.pki import Authority, Identity, JoinToken, Role, TlsCredentials, peer_certificate, requested_key
from tracker.enrol_kubernetes import ReviewUnavailable, ServiceAccounts, TokenRefused
from tracker.guesses import Guesses
from tracker.report import Membership
from tracker.tokens import Facts
from tracker.webhooks import PATHS as HOOKS

log = structlog.get_logger()

MAX_BODY = 32 * 1024  # bytes of a request
_OPEN = {"/healthz", "/v1/authority", "/v1/enrol", *HOOKS}  # need no certificate
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """Body of enrol and renew. `request`: PKCS #10 in PEM. To enrol, one of `secret`: the join token's, in hex;
    `service_account`: the projected token of a pod, see `enrol_kubernetes`.
    """

    request: str
    secret: str = ""
    service_account: str = ""


class Enrolment:
    """Signs members in. `lifetime`: seconds that a certificate is valid; `banned`: when a node may come back."""

    def __init__(
        self,
        authority: Authority,
        facts: Facts,
        lifetime: float,
        banned: Callable[[bytes], float | None],
        accounts: ServiceAccounts,
        guesses: Guesses,
    ) -> None:
        self.credentials = TlsCredentials(clients_required=False)
        self.enrolled = 0
        self.renewed = 0
        self.refused = 0
        self.limited = 0
        self._authority = authority
        self._facts = facts
        self._lifetime = lifetime
        self._banned = banned
        self._accounts = accounts
        self._guesses = guesses
        self._key = Ed25519PrivateKey.generate()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Make this tracker's own certificate, and again whenever half of its life is over."""
        public = self._key.public_key()
        certificate = self._authority.issue(public, Role.TRACKER, {}, time.time(), self._lifetime)
        self.credentials.use(certificate, self._key, self._authority.bundle)
        self._timer = asyncio.get_running_loop().call_later(self._lifetime / 2, self.start)

    def change(self, authority: Authority) -> None:
        """The same key, but another certificate of it, or others that are trusted beside it."""
        self._authority = authority
        self.stop()
        self.start()

    @property
    def counts(self) -> Membership:
        """For metrics."""
        ends = self._authority.certificate.not_valid_after_utc.timestamp()
        return Membership(self.enrolled, self.renewed, self.refused, self.limited, max(0.0, ends - time.time()))

    def stop(self) -> None:
        """No more certificates."""
        if self._timer is not None:
            self._timer.cancel()

    def routes(self, app: web.Application) -> None:
        """Add its pages."""
        app.router.add_get("/v1/authority", self._show_authority)
        app.router.add_post("/v1/enrol", self._enrol)
        app.router.add_post("/v1/renew", self._renew)

    async def new_token(self, lifetime: float, uses: int | None) -> JoinToken:
        """A join token; seconds."""
        fingerprint = self._authority.certificate.fingerprint(SHA256())
        return await self._facts.new_token(fingerprint, time.time(), lifetime, uses, {})

    def member(self, request: web.Request) -> Identity | None:
        """Whose certificate the request came with; None: nobody's, or a banned node's."""
        transport = request.transport
        identity = self.credentials.identify(transport.get_extra_info("ssl_object")) if transport is not None else None
        if identity is None or self._banned(identity.key) is not None:
            return None
        return identity

    @web.middleware
    async def members_only(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Everything but the open pages needs a member's certificate. A banned node is told so by its session."""
        if request.path not in _OPEN and request.path != "/v1/session" and self.member(request) is None:
            raise web.HTTPUnauthorized(text="a certificate of this cluster is needed\n")
        return await handler(request)

    # --- pages ---

    async def _show_authority(self, request: web.Request) -> web.Response:
        return web.Response(body=self._authority.pem, content_type="application/x-pem-file")

    async def _enrol(self, request: web.Request) -> web.Response:
        self._patience(request)
        ask = await self._read(request)
        now = time.time()
        try:
            public = requested_key(ask.request.encode())
            node, secret = public.public_bytes_raw(), binascii.unhexlify(ask.secret)
        except (InputError, ValueError) as error:
            raise self._refuse(request, 400, str(error)) from error
        if self._banned(node) is not None:
            raise self._refuse(request, 403, "this node is banned from the cluster")
        try:
            if ask.service_account:
                labels: Mapping[str, str] | None = await self._accounts.labels(ask.service_account)
            else:
                labels = await self._facts.redeem(secret, node, now)
        except StorageError as error:
            log.error("a join token can't be checked", error=str(error))
            raise self._refuse(request, 503, "the tracker's state can't be reached; try again later") from error
        except TokenRefused as error:
            self._wrong(request)
            raise self._refuse(request, 403, str(error)) from error
        except ReviewUnavailable as error:
            log.error("a service account token can't be checked", error=str(error))
            raise self._refuse(request, 503, "Kubernetes can't be asked about the token; try again later") from error
        if labels is None:
            self._wrong(request)
            raise self._refuse(request, 403, "the join token is unknown, expired, revoked or used up: ask for another")
        self.enrolled += 1
        log.info("node enrolled", node=node.hex()[:16], address=request.remote)
        return self._answer(self._authority.issue(public, Role.NODE, labels, now, self._lifetime))

    def _patience(self, request: web.Request) -> None:
        """Raise 429 if there were too many wrong tokens. Not logged: whoever asks without end would fill the log."""
        wait = math.ceil(self._guesses.wait(request.remote or "", asyncio.get_running_loop().time()))
        if wait > 0:
            self.limited += 1
            raise web.HTTPTooManyRequests(
                text=f"too many wrong tokens came from this address: try again in {wait} s\n",
                headers={"Retry-After": str(wait)},
            )

    def _wrong(self, request: web.Request) -> None:
        self._guesses.wrong(request.remote or "", asyncio.get_running_loop().time())

    async def _renew(self, request: web.Request) -> web.Response:
        ask = await self._read(request)
        transport = request.transport
        old = peer_certificate(transport.get_extra_info("ssl_object")) if transport is not None else None
        if old is None:
            raise self._refuse(request, 401, "renewal needs the certificate that is to be renewed")
        try:
            certificate = self._authority.renew(old, ask.request.encode(), time.time(), self._lifetime)
        except InputError as error:
            raise self._refuse(request, 403, str(error)) from error
        self.renewed += 1
        return self._answer(certificate)

    def _answer(self, certificate: bytes) -> web.Response:
        return web.json_response({"certificate": certificate.decode(), "authority": self._authority.bundle.decode()})

    def _refuse(self, request: web.Request, status: int, reason: str) -> web.HTTPException:
        self.refused += 1
        log.warning("enrolment refused", address=request.remote, path=request.path, reason=reason)
        kind: type[web.HTTPException] = {
            400: web.HTTPBadRequest,
            401: web.HTTPUnauthorized,
            403: web.HTTPForbidden,
            503: web.HTTPServiceUnavailable,
        }[status]
        return kind(text=reason + "\n")

    async def _read(self, request: web.Request) -> Ask:
        """The body. Bounded by the application's `client_max_size` while it comes."""
        try:
            return msgspec.json.decode(await request.read(), type=Ask)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._refuse(request, 400, f"not a request for a certificate: {error}") from error
