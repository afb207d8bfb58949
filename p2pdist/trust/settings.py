"""How an agent's trust is set up. Every value comes from the agent's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pdist.oci import Repository
from p2pdist.trust.policy import Enforcement, namespaces
from p2pdist.trust.upstream import check_store_url


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """What the gate is given.

    Attributes:
        enforcement: an explicit choice; there is no default that is silently open.
        policy_file: containers-policy.json(5); None only with enforcement "off".
        ledger: file of what was accepted, in the agent's data directory.
        base: what relative paths in the policy file start from; None: the file's directory.
        lookaside: GPG signature stores: scope (registry, namespace or repository) to base URL; most specific wins.
        ttl_seconds: how long a verdict holds, at most.
        gpgv: GnuPG's gpgv, by name or path.

    Raises:
        ConfigError: a signature store's URL can't be used.
    """

    enforcement: Enforcement
    policy_file: Path | None
    ledger: Path
    base: Path | None = None
    lookaside: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: float = 86_400.0
    gpgv: str = "gpgv"

    def __post_init__(self) -> None:
        for url in self.lookaside.values():
            check_store_url(url)

    def stores_for(self, repository: Repository) -> tuple[str, ...]:
        """The GPG signature store of a repository; empty where there is none."""
        for name in namespaces(repository):
            if name in self.lookaside:
                return (self.lookaside[name],)
        return ()
