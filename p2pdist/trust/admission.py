"""What the agent asks before it serves, and the answer of an agent without a policy."""

from __future__ import annotations

import asyncio
from typing import Protocol

from p2pdist.oci import Digest, Index, Manifest, Repository
from p2pdist.trust.policy import Enforcement
from p2pdist.trust.status import Counts, GateStatus


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

    async def prefetch(
        self, repository: Repository, target: str, digest: Digest, *, authorization: str | None = None
    ) -> None:
        """Fetch what signs `digest` ahead, while its manifest is being fetched. Raises nothing."""
        ...


class OpenGate:
    """What `enforcement = "off"` is: everything passes. Has the life of a TrustGate, and says in status what it is."""

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """See Gate."""

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """See Gate."""

    async def revive_blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> None:
        """Nothing to judge again."""

    async def prefetch(
        self, repository: Repository, target: str, digest: Digest, *, authorization: str | None = None
    ) -> None:
        """Nothing to fetch."""

    async def run(self) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing to close."""

    def status(self) -> GateStatus:
        """That nothing is checked."""
        return GateStatus(Enforcement.OFF, "", "", None, Counts(), ())
