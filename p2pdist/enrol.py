"""How a node becomes and stays a member: enrols with its token, keeps its certificate, renews it in the background.

A node works on the certificate it has until that ends: a tracker that is away for hours costs nothing. Of several
trackers the first that answers is asked, in this node's own order.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.config import AgentConfig
from p2pdist.errors import ConfigError, InputError, StorageError, TrackerError
from p2pdist.pki import (
    JoinToken,
    Role,
    TlsCredentials,
    certificates_of,
    identity_of,
    insecure_context,
    read_secret,
    request_for,
    write_secret,
)
from p2pdist.places import Place, Places, race

_log = structlog.get_logger("p2pdist.enrol")

TIMEOUT = 30.0  # seconds for one attempt: in a storm of them, giving up early only makes more work
PROBE = 5.0  # seconds for a tracker to say that it lives; only where there is another one to ask
FIRST_DELAY, LONGEST_DELAY = 0.2, 30.0  # seconds between attempts; doubles
RENEW_AT = (0.5, 0.66)  # between these parts of its life a certificate is renewed: nodes started together spread out
_LONGEST_SLEEP = 600.0  # seconds: the clock of a machine that was suspended jumps
_JOINED = "joined"  # the file that names the token which this node became a member with; no secret
MAX_ANSWER = 128 * 1024  # bytes


class Answer(msgspec.Struct):
    """What the tracker gives: both in PEM."""

    certificate: str
    authority: str


@dataclass(frozen=True, slots=True)
class Account:
    """A pod's service account, in place of a join token: its projected token, and whose word is to be believed."""

    token_file: Path
    authority_file: Path

    def token(self) -> str:
        """As it is now: it is renewed in its file. TrackerError: there is none."""
        return self._read(self.token_file, "service account token").decode(errors="replace").strip()

    def authority(self) -> bytes:
        """The certificate in PEM, the first one of the file.

        Raises:
            TrackerError: there is none.
            InputError: it isn't one.
        """
        found = self._read(self.authority_file, "certificate of the cluster's authority")
        try:
            return x509.load_pem_x509_certificates(found)[0].public_bytes(Encoding.PEM)
        except ValueError as error:
            raise InputError(f"{self.authority_file}: not a certificate: {error}") from error

    def _read(self, path: Path, what: str) -> bytes:
        try:
            found = read_secret(path)
        except StorageError as error:
            raise TrackerError(str(error)) from error
        if not found:
            raise TrackerError(f"there is no {what} in {path}")
        return found


class Enrolment:
    """Keeps `credentials` in possession of a valid certificate for `key`.

    In `directory`, for the next start and for debugging with curl: ca.crt, tls.crt, tls.key, mode 0600.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: Ed25519PrivateKey,
        directory: Path,
        token: JoinToken | None,
        credentials: TlsCredentials,
        *,
        account: Account | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.member = asyncio.Event()  # there is a certificate that holds
        self.problem = ""  # why there is none, or why it isn't renewed
        self._authority = b""  # PEM; whose certificates we trust
        self._places = Places(urls, key.public_key().public_bytes_raw())
        self._key = key
        self._directory = directory
        self._token = token
        self._account = account
        self.credentials = credentials
        self._clock = clock
        self._rng = rng or random.Random()
        self._pause = pause

    @classmethod
    def open(cls, config: AgentConfig, key: Ed25519PrivateKey) -> Enrolment | None:
        """A node's, with the certificate of an earlier run; None if the cluster is insecure.

        Raises:
            ConfigError: this node is no member, and has nothing with which it could become one.
            StorageError: a file can't be read.
        """
        cluster, urls = config.cluster, config.tracker.urls
        if cluster.insecure:
            _log.warning("insecure: nothing is encrypted, and whoever reaches the ports is a member (cluster.insecure)")
            return None
        text = cluster.token
        if cluster.token_file is not None:
            text = (read_secret(cluster.token_file) or b"").decode(errors="replace")
        token = JoinToken.parse(text) if text else None
        account = None
        if cluster.kubernetes_token_file is not None and cluster.authority_file is not None:
            account = Account(cluster.kubernetes_token_file, cluster.authority_file)
        enrolment = cls(urls, key, config.node.data_dir / "tls", token, TlsCredentials(), account=account)
        if not enrolment.load() and urls and token is None and account is None:
            raise ConfigError(
                "this node is not a member of the cluster yet: give it a join token (cluster.token_file, or with "
                "`p2pdist up` --token), which `p2pdist-tracker token create` makes; or set cluster.insecure = true on "
                "a closed test network"
            )
        return enrolment

    def status(self) -> dict[str, Any]:
        """For `p2pdist status`; nothing secret."""
        return {
            "member": self.member.is_set(),
            "cluster": self.credentials.cluster,
            "certificate_seconds": max(0.0, self.expires - self._clock()),
            "problem": self.problem,
        }

    @property
    def authority(self) -> bytes:
        """The certificate of the authority that signed this node's, PEM; empty: not known yet."""
        return certificates_of(self._authority)[0].public_bytes(Encoding.PEM) if self._authority else b""

    @property
    def expires(self) -> float:
        """When the certificate ends (Unix seconds); 0: there is none."""
        certificate = self.credentials.certificate
        return certificate.not_valid_after_utc.timestamp() if certificate is not None else 0.0

    def load(self) -> bool:
        """Use the certificate of an earlier run, if it still holds. Raises StorageError."""
        certificate, authority = read_secret(self._directory / "tls.crt"), read_secret(self._directory / "ca.crt")
        if certificate is None or authority is None:
            return False
        try:
            trusted = certificates_of(authority)
            if self._token is not None and read_secret(self._directory / _JOINED) != self._token.number.encode():
                self._token.is_of_any(trusted)  # a token that it didn't join with may be another cluster's
            if self._account is not None and certificates_of(self._account.authority())[0] not in trusted:
                raise InputError(f"{self._account.authority_file} has another cluster's authority")
            ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
            if ends <= self._clock():
                return False
            self.credentials.use(certificate, self._key, authority)
            self._authority = authority
        except (ValueError, ssl.SSLError, TrackerError) as error:
            _log.warning("the certificate of an earlier run is not used", reason=str(error))
            return False
        self.member.set()
        return True

    async def run(self) -> None:
        """Enrol if need be, and renew for ever. Never gives up; `problem` says what is wrong meanwhile."""
        while True:
            if self.expires <= self._clock():
                self.member.clear()
                await self._until_done(self._enrol, "not a member of the cluster yet")
            certificate = self.credentials.certificate
            assert certificate is not None
            begins = certificate.not_valid_before_utc.timestamp()
            due = begins + self._rng.uniform(*RENEW_AT) * (self.expires - begins)
            while self._clock() < due:
                await self._pause(min(_LONGEST_SLEEP, due - self._clock()))
            await self._until_done(self._renew, "the certificate is not renewed yet")

    async def _until_done(self, attempt: Callable[[Place], Awaitable[bool]], meanwhile: str) -> None:
        delay = FIRST_DELAY
        while True:
            left = await self._places.ranked()
            if not left:
                self.problem = f"{meanwhile}: no tracker's name can be resolved"
                _log.warning(meanwhile, reason="no tracker's name can be resolved")
            while left:
                place = left[0] if len(left) == 1 else await race(left, _alive) or left[0]
                left.remove(place)
                try:
                    async with asyncio.timeout(TIMEOUT):
                        done = await attempt(place)
                    self.problem = ""
                    if done:
                        self.member.set()
                    return
                except (aiohttp.ClientError, OSError, TimeoutError, InputError, TrackerError) as error:
                    self.problem = f"{meanwhile}: {error or type(error).__name__}"
                    _log.warning(meanwhile, url=place.base, error=str(error) or type(error).__name__)
            await self._pause(self._rng.uniform(delay / 2, delay))
            delay = min(LONGEST_DELAY, 2 * delay)

    async def _enrol(self, place: Place) -> bool:
        token, account = self._token, self._account
        sure, ask = TlsCredentials(), {"request": request_for(self._key).decode()}
        if account is not None:
            authority, proof = account.authority(), {"service_account": account.token()}
        elif token is not None:
            authority, proof = await self._authority_of(place, token), {"secret": token.secret.hex()}
        else:
            raise TrackerError(
                "this node has no certificate that holds and no join token (cluster.token); "
                "`p2pdist-tracker token create` makes one"
            )
        sure.trust(authority)
        await self._ask(place, "enrol", ask | proof, sure.client, authority)
        return True

    async def _authority_of(self, place: Place, token: JoinToken) -> bytes:
        """The authority that the tracker names, if it is the one that the token names."""
        async with (  # whoever answers here is not known yet, and is told nothing
            aiohttp.ClientSession() as session,
            session.get(f"{place.base}/v1/authority", headers=place.headers, ssl=insecure_context()) as answer,
        ):
            authority = await _body(answer)
        try:
            parsed = x509.load_pem_x509_certificate(authority)
        except ValueError as error:
            raise InputError(f"the tracker's authority is not a certificate: {error}") from error
        token.is_of(parsed)
        return authority

    async def _renew(self, place: Place) -> bool:
        if self.expires <= self._clock():
            return False  # over: `run` enrols again
        ask = {"request": request_for(self._key).decode()}
        await self._ask(place, "renew", ask, self.credentials.client, self._authority)
        return True

    async def _ask(
        self, place: Place, what: str, body: dict[str, str], context: ssl.SSLContext, authority: bytes
    ) -> None:
        """Ask for a certificate and use it. Who gives it is a tracker of the `authority` that is trusted already."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{place.base}/v1/{what}",
                headers=place.headers,
                json=body,
                ssl=context,
                server_hostname=Role.TRACKER.host,
            ) as answer,
        ):
            try:
                got = msgspec.json.decode(await _body(answer), type=Answer)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"the tracker's answer is no certificate: {error}") from error
        certificate, authority = got.certificate.encode(), self._next_authority(got.authority.encode(), authority)
        self._check(certificate, authority)
        self.credentials.use(certificate, self._key, authority)
        self._authority = authority
        if self._token is not None and what == "enrol":
            write_secret(self._directory / _JOINED, self._token.number.encode())
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for name, data in (("ca.crt", authority), ("tls.key", private), ("tls.crt", certificate)):
            write_secret(self._directory / name, data)
        _log.info("certificate", until=int(self.expires))

    def _next_authority(self, given: bytes, authority: bytes) -> bytes:
        """Whom to trust from now on: what the tracker says, as long as it goes on from what was trusted before."""
        if not set(certificates_of(given)) & set(certificates_of(authority)):
            raise InputError("the tracker names an authority that doesn't follow from the one that is trusted")
        return given

    def _check(self, certificate: bytes, authority: bytes) -> None:
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            parsed.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
            if identity_of(parsed).role is not Role.NODE:
                raise InputError("the certificate is not a node's")
        except InputError:
            raise
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InputError(f"the tracker gave a certificate that its authority didn't sign: {error}") from error


async def _alive(place: Place) -> Place | None:
    """Whether anything answers there; nothing is believed, nothing told."""
    try:
        async with (
            asyncio.timeout(PROBE),
            aiohttp.ClientSession() as session,
            session.get(f"{place.base}/healthz", headers=place.headers, ssl=insecure_context()),
        ):
            return place
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_chunked(16 * 1024):
        body += piece
        if len(body) > MAX_ANSWER:
            raise InputError(f"the tracker's answer is over {MAX_ANSWER} bytes")
    if answer.status != 200:
        raise TrackerError(
            f"the tracker answered {answer.status}: {bytes(body[:300]).decode(errors='replace').strip()}"
        )
    return bytes(body)
