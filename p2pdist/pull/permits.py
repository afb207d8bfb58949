"""Which credential was let into which repository by the upstream, and when. Pure, bounded, and holds no credential."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from p2pdist.errors import UpstreamDenied
from p2pdist.oci import Repository

MAX_PERMITS = 4096  # (repository, credential) pairs remembered; the one used longest ago goes
REFUSED = 5.0  # seconds that a refusal is remembered: a client that asks on and on costs the upstream little


class Permits:
    """Times are Unix seconds. `secret` keys the hashes by which credentials are told apart (32 random bytes).

    The node's own credentials are `authorization` None; what they opened can be kept over a restart (`own`), what a
    client's opened can't: nothing that follows from a client's secret is ever written down.
    """

    def __init__(self, secret: bytes, limit: int = MAX_PERMITS) -> None:
        self._secret = secret
        self._limit = limit
        self._accepted: OrderedDict[bytes, float] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, UpstreamDenied]] = OrderedDict()
        self.own: OrderedDict[str, float] = OrderedDict()  # repository -> when the node's own were accepted
        self.imported: OrderedDict[str, None] = OrderedDict()  # repositories whose images the operator brought here

    def key(self, repository: Repository, authorization: str | None) -> bytes:
        """What stands for a repository and a credential."""
        text = f"{repository}\0{'own' if authorization is None else 'sent ' + authorization}"
        return hashlib.blake2b(text.encode(), key=self._secret, digest_size=32).digest()

    def accept(self, repository: Repository, authorization: str | None, now: float) -> None:
        """The upstream gave something of `repository` to this credential."""
        key = self.key(repository, authorization)
        self._refused.pop(key, None)
        _put(self._accepted, key, now, self._limit)
        if authorization is None:
            _put(self.own, str(repository), now, self._limit)

    def refuse(self, repository: Repository, authorization: str | None, error: UpstreamDenied, now: float) -> None:
        """The upstream refused: what was accepted earlier holds no longer."""
        key = self.key(repository, authorization)
        self._accepted.pop(key, None)
        if authorization is None:
            self.own.pop(str(repository), None)
        _put(self._refused, key, (now, error), self._limit)

    def grant(self, repository: Repository) -> None:
        """The operator brought an image of `repository` to this node by hand."""
        _put(self.imported, str(repository), None, self._limit)

    def accepted(self, repository: Repository, authorization: str | None, now: float, seconds: float) -> bool:
        """Whether the upstream accepted it in the last `seconds`."""
        key = self.key(repository, authorization)
        when = self._accepted.get(key)
        if when is None and authorization is None:
            when = self.own.get(str(repository))
        if when is None or not 0 <= now - when < seconds:  # a clock that was set back proves nothing
            return False
        if key in self._accepted:
            self._accepted.move_to_end(key)
        return True

    def refused(self, repository: Repository, authorization: str | None, now: float) -> UpstreamDenied | None:
        """The upstream's refusal, if it is that fresh."""
        found = self._refused.get(self.key(repository, authorization))
        return found[1] if found is not None and 0 <= now - found[0] < REFUSED else None

    def __len__(self) -> int:
        return len(self._accepted) + len(self._refused)


def _put(held: OrderedDict, key: object, value: object, limit: int) -> None:  # type: ignore[type-arg]  # any of ours
    held.pop(key, None)
    held[key] = value
    while len(held) > limit:
        held.popitem(last=False)
