"""For the command line: what a policy says, and what it says of one image, without a running gate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from p2pdist.oci import Index, Manifest, Repository
from p2pdist.trust import limits
from p2pdist.trust.evidence import Evidence
from p2pdist.trust.fetch import gather
from p2pdist.trust.policy import Policy, Scope
from p2pdist.trust.signatures.gpg import Gpgv, OpenSignature, within
from p2pdist.trust.source import SignatureSource
from p2pdist.trust.verdict import Verdict, judge


@dataclass(frozen=True, slots=True)
class ScopeExplanation:
    """One scope in words. `forms`: the forms of signatures that could meet its requirements."""

    scope: str
    requirements: tuple[str, ...]
    forms: tuple[str, ...]
    accepts_anything: bool


def explain_policy(policy: Policy) -> tuple[ScopeExplanation, ...]:
    """Every scope of a policy, the global default last."""
    return (*(_explained(policy.scopes[name]) for name in sorted(policy.scopes)), _explained(policy.default))


def explain_scope(policy: Policy, repository: Repository, target: str) -> ScopeExplanation:
    """The scope that applies to a pull of `target`, a tag or a digest's text."""
    return _explained(policy.scope_for(repository, target))


async def explain_image(
    policy: Policy,
    source: SignatureSource,
    repository: Repository,
    target: str,
    manifest: Manifest | Index,
    *,
    now: datetime,
    stores: Sequence[str] = (),
    open_signature: OpenSignature | None = None,
) -> Verdict:
    """The verdict on one image with its whole reasoning.

    Args:
        policy: as loaded by `load_policy`.
        source: where its signatures are.
        repository: the image's.
        target: the tag or digest's text it is pulled by.
        manifest: what that resolved to.
        now: the time it is judged at, in UTC.
        stores: base URLs of GPG signature stores.
        open_signature: runs gpgv.
    """
    scope = policy.scope_for(repository, target)
    evidence = Evidence()
    if scope.forms:
        evidence = await gather(source, repository, manifest.digest, scope.forms, stores)
    opener = within(Gpgv() if open_signature is None else open_signature, limits.SECONDS, time.monotonic)
    return await asyncio.to_thread(judge, scope, repository, target, manifest, evidence, now, opener)


def _explained(scope: Scope) -> ScopeExplanation:
    return ScopeExplanation(
        scope.name,
        tuple(str(requirement) for requirement in scope.requirements),
        tuple(sorted(scope.forms)),
        scope.open,
    )
