"""Where signatures come from: the one thing this room needs from the outside. Implementations pass one contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from p2pdist.oci import Digest, Repository


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """One page of referrers. `next`: what asks for the following page; None on the last."""

    body: bytes = field(repr=False)
    next: str | None = None


class SignatureSource(Protocol):
    """A registry as its signatures are read. Every method raises UpstreamError (in its kinds) when it can't tell.

    "There is none" is asked at the origin: never answered from a store or by another node.
    """

    def on_behalf_of(self, authorization: str) -> SignatureSource:
        """The same registry, asked with a client's own Authorization value."""
        ...

    async def manifest(self, repository: Repository, target: str, limit: int) -> bytes | None:
        """The manifest under a tag or digest, at most `limit` bytes; None where there is none (404)."""
        ...

    async def blob(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """A blob of `size` bytes. Reads no byte more; whether the digest holds is for the caller to check."""
        ...

    async def referrers(
        self, repository: Repository, digest: Digest, page: str | None, limit: int
    ) -> ReferrersPage | None:
        """One page of what refers to `digest`, all artifact types; None where the registry has no such API (404)."""
        ...

    async def lookaside(self, base: str, path: str, limit: int) -> bytes | None:
        """A file of a GPG signature store under the URL `base`, at most `limit` bytes; None where there is none."""
        ...
