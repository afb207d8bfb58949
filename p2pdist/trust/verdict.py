"""The judgement: a policy's scope, an image and what was found for it in; accepted or not, and the whole reasoning out.

Pure, but for `open_signature`, which runs gpgv. May take milliseconds per signature: for a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from p2pdist.oci import Index, Manifest, Repository
from p2pdist.trust.evidence import Candidate, Evidence, Form
from p2pdist.trust.identity import Name
from p2pdist.trust.notation import verify_notation
from p2pdist.trust.policy import Scope
from p2pdist.trust.refusal import Refused
from p2pdist.trust.requirements import (
    AcceptAnything,
    BundleSigned,
    GpgSigned,
    NotationSigned,
    Reject,
    Requirement,
    SimpleSigned,
)
from p2pdist.trust.signatures.bundle import Signed, verify_bundle, verify_dsse
from p2pdist.trust.signatures.gpg import OpenSignature, verify_gpg
from p2pdist.trust.signatures.simplesigning import verify_simple

MAX_MESSAGE = 1200  # characters of a refusal's text: it goes through daemons to their users' terminals


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One signature that was looked at for one requirement. Texts are empty where nothing is known.

    Attributes:
        where: what it is, in words: a tag and layer, a digest, a file of a store.
        form: how it is stored.
        accepted: whether it counts.
        reason: why it doesn't; with what it was made where it does.
        signer: key or identity.
        identity: the image's name that it is for, where the format has one.
        expires: seconds since 1970 from which on it no longer counts.
    """

    where: str
    form: str
    accepted: bool
    reason: str
    signer: str = ""
    digest: str = ""
    identity: str = ""
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class RequirementResult:
    """One requirement of the scope. `candidates`: every one looked at, up to the first that counts."""

    requirement: str
    met: bool
    reason: str
    candidates: tuple[CandidateResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an image may be served under a name, and why. Plain values: `dataclasses.asdict` makes it JSON.

    Attributes:
        scope: the scope of the policy that applied.
        requirements: each of them, met or not.
        unread: what might have been a signature and could not be looked at.
        expires: seconds since 1970 from which on the judgement no longer holds; None: no end of its own.
        incomplete: something could not be fetched for the moment, so a refusal may not last.
    """

    accepted: bool
    repository: str
    target: str
    digest: str
    scope: str
    reason: str
    requirements: tuple[RequirementResult, ...]
    unread: tuple[str, ...] = ()
    expires: float | None = None
    incomplete: bool = False
    requests: int = 0
    round_trips: int = 0


def judge(
    scope: Scope,
    repository: Repository,
    target: str,
    manifest: Manifest | Index,
    evidence: Evidence,
    now: datetime,
    open_signature: OpenSignature,
) -> Verdict:
    """Whether `manifest`, pulled as `target` of `repository`, meets every requirement of `scope`.

    Args:
        scope: the one that applies (`Policy.scope_for`).
        repository: the logical one, never the mirror's path.
        target: the tag or digest that was asked for.
        manifest: what it resolved to.
        evidence: what `fetch.gather` found for `scope.forms`.
        now: the time in UTC.
        open_signature: runs gpgv.
    """
    image = _Image(repository, Name.of_target(repository, target), manifest, now, open_signature)
    results = tuple(_judge_requirement(requirement, image, evidence) for requirement in scope.requirements)
    accepted = all(result.met for result in results)
    ends = [
        candidate.expires
        for result in results
        for candidate in result.candidates
        if candidate.accepted and candidate.expires is not None
    ]
    return Verdict(
        accepted,
        str(repository),
        target,
        str(manifest.digest),
        scope.name,
        "accepted" if accepted else _message(scope, image, results, evidence),
        results,
        tuple(f"{unread.where}: {unread.reason}" for unread in evidence.unread),
        min(ends, default=None) if accepted else None,
        any(unread.fault for unread in evidence.unread),
        evidence.requests,
        evidence.round_trips,
    )


@dataclass(frozen=True, slots=True)
class _Image:
    repository: Repository
    pulled: Name
    manifest: Manifest | Index
    now: datetime
    open_signature: OpenSignature


_Judge = Callable[[Candidate], Signed]


def _judge_requirement(requirement: Requirement, image: _Image, evidence: Evidence) -> RequirementResult:
    raw, now = image.manifest.raw, image.now
    match requirement:
        case AcceptAnything():
            return RequirementResult(str(requirement), True, "the policy accepts anything here")
        case Reject():
            return RequirementResult(str(requirement), False, "the policy rejects everything here")
        case SimpleSigned(trust=trust, identity=identity):

            def by(one: Candidate) -> Signed:
                return verify_simple(one.raw, one.annotations, raw, image.pulled, trust, identity, now)

        case BundleSigned(trust=bundle_trust, predicate_type=predicate, conditions=conditions):

            def by(one: Candidate) -> Signed:
                if one.form is Form.DSSE and isinstance(bundle_trust, tuple):
                    return verify_dsse(one.raw, raw, bundle_trust, predicate, conditions)
                return verify_bundle(one.raw, raw, bundle_trust, predicate, conditions)

        case NotationSigned(policy=policy):
            statement = policy.statement_for(image.repository)
            if statement is None:
                return RequirementResult(str(requirement), False, "no statement of the trust policy applies")
            if statement.skips:
                return RequirementResult(str(requirement), True, f"statement {statement.name} skips verification")

            def by(one: Candidate) -> Signed:
                return verify_notation(one.raw, one.media_type, raw, image.manifest.media_type, statement, now)

        case GpgSigned(keyring=keyring, identity=signed_identity):

            def by(one: Candidate) -> Signed:
                return verify_gpg(one.raw, raw, image.pulled, keyring, signed_identity, now, image.open_signature)

    return _any_good(requirement, [one for one in evidence.candidates if one.form in requirement.forms], by)


def _any_good(requirement: Requirement, candidates: list[Candidate], by: _Judge) -> RequirementResult:
    results: list[CandidateResult] = []
    for one in candidates:
        result = _judge_candidate(one, by)
        results.append(result)
        if result.accepted:
            return RequirementResult(str(requirement), True, f"signed by {result.signer}", tuple(results))
    reason = f"none of {len(results)} signatures counts" if results else "no signature was found"
    return RequirementResult(str(requirement), False, reason, tuple(results))


def _judge_candidate(one: Candidate, by: _Judge) -> CandidateResult:
    try:
        signed = by(one)
    except Refused as error:
        return CandidateResult(one.where, one.form, False, str(error))
    expires = None if signed.expires is None else signed.expires.timestamp()
    return CandidateResult(
        one.where, one.form, True, signed.method, signed.signer, str(signed.digest), signed.identity or "", expires
    )


def _message(scope: Scope, image: _Image, results: tuple[RequirementResult, ...], evidence: Evidence) -> str:
    parts = []
    for result in results:
        if not result.met:
            why = [f"{candidate.where}: {candidate.reason}" for candidate in result.candidates]
            parts.append(f"{result.requirement}: {result.reason}" + "".join(f"; {text}" for text in why))
    if evidence.unread:
        parts.append("not looked at: " + "; ".join(f"{one.where}: {one.reason}" for one in evidence.unread))
    text = f"policy refuses {image.pulled} ({image.manifest.digest}), scope {scope.name}: {' | '.join(parts)}"
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
