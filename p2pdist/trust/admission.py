"""What the agent asks before it serves, and the answer of an agent without a policy."""

from __future__ import annotations

from typing import Protocol

from p2pdist.oci import Digest, Index, Manifest, Repository


class Gate(Protocol):
    """Stands between what the agent has and the daemon. `repository` is the logical one, never the mirror's path."""

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """Return if `manifest`, asked for as `target` (a tag or a digest's text), may be served; else PolicyError.

        `authorization`: the client's own, where the registry is asked with it.
        """
        ...

    async def revive_blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> None:
        """Judge again what passed before the policy changed or its time ended; raises nothing."""
        ...

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """Return if a blob of this repository may be served; else PolicyError."""
        ...


class OpenGate:
    """Lets everything through."""

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """See Gate."""

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """See Gate."""

    async def revive_blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> None:
        """See Gate."""
