"""Who may ask this mirror at all: by which name it was called, and by a password where one is set. Pure.

A page in a browser can have any name resolve to 127.0.0.1 and then read what answers there (DNS rebinding). Its
requests carry that name in Host, so only names that are ours are answered. Daemons send the address they were given.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass

from p2pdist.config import logins_in
from p2pdist.mirror.door import Refusal

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?")  # RFC 9110 section 7.2
_STRANGE = Refusal(421, "DENIED", "this mirror is not called that: mirror.names says by which names it may be")
# No challenge: Docker and containerd would answer it with their user's password for the registry.
_LOCKED = Refusal(403, "DENIED", "this mirror wants a password (mirror.password_file), sent unasked as Authorization")


@dataclass(frozen=True, slots=True)
class Access:
    """`names`: what it may be called besides addresses; `remote`: it listens beyond loopback, by any address.

    `passwords`: sha256 of `user:password` each; empty: none is needed.
    """

    names: frozenset[str] = frozenset()
    remote: bool = False
    passwords: frozenset[bytes] = frozenset()

    def objection(self, host: str | None, authorization: str | None) -> Refusal | None:
        """Why a request with these headers isn't answered."""
        if not self._ours(host or ""):
            return _STRANGE
        return None if self._opens(authorization) else _LOCKED

    def upstreams(self, authorization: str | None) -> str | None:
        """What of the client's Authorization is for the upstream: nothing, where it holds the mirror's password."""
        return None if self.passwords else authorization

    def _ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").rstrip(".").lower()
        if name == "localhost" or name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.remote or address.is_loopback

    def _opens(self, authorization: str | None) -> bool:
        if not self.passwords:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        try:
            login = base64.b64decode(given.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        got = hashlib.sha256(login).digest()
        matching = [hmac.compare_digest(got, wanted) for wanted in self.passwords]
        return scheme.lower() == "basic" and any(matching)


def read_passwords(text: str) -> frozenset[bytes]:
    """What a password file says, for `Access`. ConfigError: see `config.logins.logins_in`."""
    return frozenset(hashlib.sha256(login.encode()).digest() for login in logins_in(text))
