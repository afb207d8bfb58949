"""Authorization for one registry: Bearer tokens by scope, or Basic (distribution-spec; "Token Authentication").

Decides synchronously: a token that is fresh is used; one fetch per scope is in the air, whoever asks; who waits for a
fetch whose owner was cancelled starts it again.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from p2pdist.errors import UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamNotFound
from p2pdist.upstream.answers import error_of
from p2pdist.upstream.challenge import Challenge, shown_challenge
from p2pdist.upstream.credentials import Credential, Credentials, IdentityToken, Login, RegistryToken
from p2pdist.upstream.transport import Transport, discard, read_small, shown

MAX_TOKENS = 1024  # scopes remembered per registry
MAX_TOKEN_ANSWER = 256 * 1024
MAX_TOKEN = 64 * 1024
DEFAULT_LIFE = 60.0  # seconds, where the answer names none (distribution: docs/spec/auth/token.md)
MIN_LIFE, MAX_LIFE = 10.0, 24 * 3600.0

CLIENT_ID = "p2pdist"


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    stale: float  # from this reading of the clock on, fetch another one


class Authenticator:
    """What to send as `Authorization` to one registry.

    Args:
        name: the registry's, for credentials and errors.
        url: where it is reached: over https, its realm must be https, too.
        wall: Unix time in seconds, for Retry-After dates; `clock`: monotonic seconds, for the life of tokens.
    """

    def __init__(
        self,
        name: str,
        url: URL,
        credentials: Credentials,
        transport: Transport,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._name = name
        self._secure = url.scheme == "https"
        self._credentials = credentials
        self._transport = transport
        self._clock = clock
        self._wall = wall
        self._tokens: OrderedDict[str, _Token] = OrderedDict()
        self._basic: str | None = None
        self._bearer: Challenge | None = None  # the last one: new scopes ask its realm without being refused first
        self._flights: dict[str, asyncio.Future[UpstreamError | None]] = {}

    def passed_on(self, scope: str, challenges: Sequence[Challenge] = ()) -> str:
        """The registry's challenge (of these, else its last one) for a client that may have a login of its own.

        Empty where there is none that can be passed on. A password is never asked for here: whoever answers Basic sends
        it to whom asked, and that would be this agent.
        """
        found = next((challenge for challenge in challenges if challenge.scheme == "bearer"), self._bearer)
        if found is None:
            return ""
        try:
            self._realm(found)
        except UpstreamDenied:
            return ""
        return shown_challenge(found, scope)

    async def current(self, scope: str) -> str | None:
        """The header for a request that needs `scope`; None while the registry hasn't said what it wants.

        Raises:
            UpstreamError: the token service fails or refuses.
        """
        if self._bearer is None:
            return self._basic
        return await self._token(scope, self._bearer, scope)

    async def answer(self, scope: str, challenges: Sequence[Challenge], refused: str | None) -> str:
        """The header for another try after a 401 with these challenges; `refused` is the one that was sent.

        Raises:
            UpstreamDenied: nothing better than what was refused can be had.
            UpstreamError: the token service fails.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return await self._answer_bearer(scope, challenge, refused)
        if any(challenge.scheme == "basic" for challenge in challenges):
            return await self._answer_basic(refused)
        offered = ", ".join(challenge.scheme[:20] for challenge in challenges) or "none"
        raise UpstreamDenied(f"{self._name} wants an authentication other than Bearer and Basic: {offered}", status=401)

    # --- Basic ---

    async def _answer_basic(self, refused: str | None) -> str:
        self._bearer = None
        found = await self._credentials.find(self._name)
        if not isinstance(found.credential, Login):
            raise UpstreamDenied(f"{self._name} wants a user and a password (Basic); {found.note}", status=401)
        header = _basic(found.credential)
        if header == refused:
            self._basic = None
            raise UpstreamDenied(
                f"{self._name} refuses the user {found.credential.username!r} (from {found.note})", status=401
            )
        self._basic = header
        return header

    # --- Bearer ---

    async def _answer_bearer(self, scope: str, challenge: Challenge, refused: str | None) -> str:
        self._realm(challenge)
        self._basic = None
        self._bearer = challenge
        held = self._tokens.get(scope)
        if held is not None and held.header == refused:
            del self._tokens[scope]
        return await self._token(scope, challenge, challenge.parameters.get("scope") or scope)

    async def _token(self, scope: str, challenge: Challenge, asked: str) -> str:
        """The fresh token for `scope`, by the one flight that asks the token service for `asked`."""
        while True:
            held = self._tokens.get(scope)
            if held is not None and held.stale > self._clock():
                self._tokens.move_to_end(scope)
                return held.header
            flight = self._flights.get(scope)
            if flight is None:
                return await self._fly(scope, challenge, asked)
            failed = await asyncio.shield(flight)
            if failed is not None:
                raise type(failed)(str(failed), status=failed.status, retry_after=failed.retry_after)

    async def _fly(self, scope: str, challenge: Challenge, asked: str) -> str:
        flight: asyncio.Future[UpstreamError | None] = asyncio.get_running_loop().create_future()
        self._flights[scope] = flight
        failed: UpstreamError | None = None
        try:
            token = await self._fetch(challenge, asked)
        except UpstreamError as error:
            failed = error
            raise
        finally:
            del self._flights[scope]
            flight.set_result(failed)  # None after a cancellation: the next in line looks, and fetches itself
        self._tokens[scope] = token
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return token.header

    async def _fetch(self, challenge: Challenge, asked: str) -> _Token:
        realm = self._realm(challenge)
        found = await self._credentials.find(self._name)
        credential = found.credential
        if isinstance(credential, RegistryToken):
            return _Token(f"Bearer {_checked(credential.token, found.note)}", self._clock() + DEFAULT_LIFE)
        started = self._clock()
        response = await self._ask(realm, challenge.parameters.get("service", ""), asked, credential)
        if response.status in (400, 401, 403):
            await discard(response)
            who = f"the user {credential.username!r}" if isinstance(credential, Login) else "the request"
            raise UpstreamDenied(
                f"{shown(realm)}, the token service of {self._name}, refuses {who} ({response.status}; {found.note})",
                status=response.status,
            )
        if response.status != 200:
            failed = await error_of(response, f"the token service of {self._name}", self._wall())
            # Not found is the token service, not what was asked of the registry.
            raise UpstreamInvalid(str(failed), status=404) if isinstance(failed, UpstreamNotFound) else failed
        token, life = _read_token(await read_small(response, MAX_TOKEN_ANSWER), shown(realm))
        # A tenth of its life, at most half a minute, is left to requests that are on their way with it.
        return _Token(f"Bearer {token}", started + life - min(30.0, life / 10))

    async def _ask(self, realm: URL, service: str, asked: str, credential: Credential | None) -> aiohttp.ClientResponse:
        fields = {name: value for name, value in (("service", service), ("scope", asked)) if value}
        if isinstance(credential, IdentityToken):
            form = {"grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": credential.token}
            return await self._transport.send("POST", realm, {}, form=form | fields)
        headers: dict[str, str] = {}
        if isinstance(credential, Login):
            headers["Authorization"] = _basic(credential)
            fields["client_id"] = CLIENT_ID
        return await self._transport.send("GET", realm.update_query(fields), headers)

    def _realm(self, challenge: Challenge) -> URL:
        """Where to ask for tokens; UpstreamDenied if credentials must not go there."""
        text = challenge.parameters.get("realm", "")
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("http", "https") or not realm.host or realm.user is not None or realm.fragment:
            raise UpstreamDenied(f"{self._name} names no usable token service in its challenge", status=401)
        if self._secure and realm.scheme != "https":
            raise UpstreamDenied(
                f"{self._name} is reached over https but names a token service over plain http, {shown(realm)};"
                " nothing is sent there",
                status=401,
            )
        return realm


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()


def _read_token(raw: bytes, where: str) -> tuple[str, float]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise UpstreamInvalid(f"{where}: the token service's answer is not JSON") from None
    if not isinstance(body, Mapping):
        raise UpstreamInvalid(f"{where}: the token service's answer is not a JSON object")
    token = body.get("token") or body.get("access_token")
    life = body.get("expires_in")
    if not isinstance(life, int | float) or not life > 0:
        life = DEFAULT_LIFE
    return _checked(token, where), float(min(max(life, MIN_LIFE), MAX_LIFE))


def _checked(token: object, where: str) -> str:
    """`token` if it can stand in a header."""
    if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN and token.isascii() and token.isprintable():
        return token
    raise UpstreamInvalid(f"{where}: no token that could be sent in a header")
