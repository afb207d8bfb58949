"""How a `FakeRegistry` authenticates: Basic, or Bearer with a token endpoint of its own."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web
from support.answers import Logged, error


@dataclass(frozen=True)
class BasicAuth:
    """401 with `Basic` until one of these users is given."""

    users: Mapping[str, str]


@dataclass(frozen=True)
class BearerAuth:
    """401 with `Bearer`, tokens from `/token`. Anonymous tokens open every repository not in `private`.

    `identity_tokens`: refresh tokens that a POST to `/token` takes. `realm`: announced instead of our own.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    private: frozenset[str] = frozenset()
    identity_tokens: frozenset[str] = frozenset()
    expires_in: int | None = 300
    realm: str | None = None
    clock: Callable[[], float] = time.monotonic


class Door:
    """Who may in: challenges, and the tokens given so far."""

    def __init__(self, auth: BasicAuth | BearerAuth | None) -> None:
        self.auth = auth
        self._tokens: dict[str, tuple[str, float]] = {}  # token -> (scope, expires)
        self.given: list[str] = []  # every token ever

    def refuse(self, request: web.Request, repository: str, realm: str) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if isinstance(self.auth, BasicAuth):
            if _basic(given, self.auth.users) is not None:
                return None
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="fake"'})
        if isinstance(self.auth, BearerAuth):
            scope = f"repository:{repository}:pull" if repository else ""
            token = given.removeprefix("Bearer ")
            granted, expires = self._tokens.get(token, ("", 0.0))
            if given.startswith("Bearer ") and expires > self.auth.clock() and scope in ("", *granted.split()):
                return None
            realm = self.auth.realm or realm
            challenge = f'Bearer realm="{realm}",service="fake, \\"the\\" service"' + (
                f',scope="{scope}"' if scope else ""
            )
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return None

    def token(self, request: web.Request, one: Logged) -> web.Response:
        assert isinstance(self.auth, BearerAuth)
        given = request.headers.get("Authorization", "")
        user = _basic(given, self.auth.users)
        scope = request.query.get("scope", "")
        if request.method == "POST":
            form = dict(part.split("=", 1) for part in one.body.decode().split("&"))
            scope = unquote_plus(form.get("scope", ""))
            if unquote_plus(form.get("refresh_token", "")) not in self.auth.identity_tokens:
                return error(401, "UNAUTHORIZED")
            user = "identity"
        elif given and user is None:
            return error(401, "UNAUTHORIZED")
        if user is None:
            scope = " ".join(s for s in scope.split() if s.split(":")[1] not in self.auth.private)
        token = secrets.token_urlsafe(16)
        self.given.append(token)
        life = 60 if self.auth.expires_in is None else self.auth.expires_in
        self._tokens[token] = (scope, self.auth.clock() + life)
        body: dict[str, Any] = {"access_token" if request.method == "POST" else "token": token}
        if self.auth.expires_in is not None:
            body["expires_in"] = self.auth.expires_in
        return web.json_response(body)

    def revoke_tokens(self) -> None:
        """Every token given so far stops working."""
        self._tokens.clear()


def _basic(given: str, users: Mapping[str, str]) -> str | None:
    if not given.startswith("Basic "):
        return None
    user, _, password = base64.b64decode(given[6:]).decode().partition(":")
    return user if users.get(user) == password else None
