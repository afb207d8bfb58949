"""The gate: which manifests and blobs the side that faces the daemon may serve. Design page "trust".

Rules, with `enforcement = "enforce"`:
1. A manifest by tag is judged as (repository, tag) and what the tag resolved to; a verdict holds until it expires or
   the policy changes.
2. A manifest by digest passes when it was accepted for this repository under the present policy, or is a child of an
   accepted index of this repository; else it is judged itself.
3. A blob passes when it belongs to a manifest that passed, in this repository.
4. Signature objects pass by their shape (`shapes`).
5. A refusal is remembered for at most 30 s: a signature that is made later is seen by then.
6. A change of the policy takes effect with the next question; what the old one let through is judged again.

With "warn" everything passes at once; judgements are made behind it, logged, counted and shown. With "off" nothing is
judged.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog

from p2pdist.errors import ConfigError, PolicyError, StorageError, UpstreamError
from p2pdist.oci import Digest, Index, Manifest, Repository
from p2pdist.trust import limits
from p2pdist.trust.closure import Closure, Record
from p2pdist.trust.evidence import Evidence, Form
from p2pdist.trust.fetch import gather
from p2pdist.trust.flights import Flights
from p2pdist.trust.ledger import Ledger
from p2pdist.trust.policy import Enforcement, Scope
from p2pdist.trust.policyfile import LoadedPolicy, PolicyFile
from p2pdist.trust.settings import TrustSettings
from p2pdist.trust.shapes import SignatureObject, is_no_archive, signature_object
from p2pdist.trust.signatures.gpg import Gpgv, OpenSignature
from p2pdist.trust.source import SignatureSource
from p2pdist.trust.status import Counts, GateStatus, Refusal, RefusalLog
from p2pdist.trust.verdict import Verdict, judge

_EVIDENCE_KEPT = 16
_EVIDENCE_BYTES = 2 * limits.MIB  # of one image; more is fetched again when it is needed again
_REFUSALS_KEPT = 1024
_WAITING = 256  # judgements that "warn" has not come round to


class Gate(Protocol):
    """What the agent asks before it serves."""

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """Return if `manifest`, asked for as `target` (a tag or a digest's text), may be served; else PolicyError."""
        ...

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """Return if a blob of this repository may be served; else PolicyError."""
        ...


class OpenGate:
    """Lets everything through: what an agent without a policy has."""

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """See Gate."""

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """See Gate."""


@dataclass(frozen=True, slots=True)
class _Found:
    evidence: Evidence
    until: float


@dataclass(frozen=True, slots=True)
class _Refused:
    verdict: Verdict
    until: float


_Asked = tuple[Repository, str, Digest, str]


class TrustGate:
    """A policy in force. `open` it, run `run` in the agent's task group, `close` it."""

    def __init__(
        self,
        settings: TrustSettings,
        policy: PolicyFile,
        source: SignatureSource,
        ledger: Ledger,
        records: Iterable[Record],
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        open_signature: OpenSignature,
    ) -> None:
        """Use `open`."""
        self._settings = settings
        self._policy = policy
        self._source = source
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic
        self._open_signature = open_signature
        self._log = structlog.get_logger("p2pdist.trust")
        self._all = {(one.repository, one.target, one.digest): one for one in records}
        self._closure = Closure(policy.current().generation, self._all.values())
        self._objects: dict[tuple[Repository, Digest], float] = {}
        self._evidence: OrderedDict[tuple[Repository, Digest, frozenset[Form]], _Found] = OrderedDict()
        self._refusals: OrderedDict[_Asked, _Refused] = OrderedDict()
        self._judging: Flights[_Asked, Verdict] = Flights()
        self._gathering: Flights[tuple[Repository, Digest, frozenset[Form], str | None], Evidence] = Flights()
        self._waiting: asyncio.Queue[tuple[Repository, str, Manifest | Index, str | None]] = asyncio.Queue(_WAITING)
        self._counts = Counts()
        self._shown = RefusalLog()

    @classmethod
    async def open(
        cls,
        settings: TrustSettings,
        source: SignatureSource,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        open_signature: OpenSignature | None = None,
    ) -> TrustGate:
        """Read the policy and what was accepted before.

        Raises:
            ConfigError: there is no policy file, or it is wrong: an agent that can't tell must not start.
            StorageError: the ledger can't be used.
        """
        if settings.policy_file is None:
            raise ConfigError(f'enforcement = "{settings.enforcement}" needs a policy file')
        policy = await asyncio.to_thread(PolicyFile, settings.policy_file, settings.base)
        ledger = await Ledger.open(settings.ledger)
        try:
            records = await ledger.load(clock())
        except BaseException:
            await ledger.close()
            raise
        opener = Gpgv(settings.gpgv) if open_signature is None else open_signature
        return cls(settings, policy, source, ledger, records, clock=clock, monotonic=monotonic, open_signature=opener)

    async def close(self) -> None:
        """Close the ledger."""
        await self._ledger.close()

    async def run(self) -> None:
        """With "warn": judge what has been served meanwhile, for ever. Else wait for ever."""
        while True:
            repository, target, manifest, authorization = await self._waiting.get()
            await self._admitted(repository, target, manifest, authorization)

    # --- what the agent asks --------------------------------------------------------------------------------------

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """See Gate. Takes at most limits.SECONDS."""
        match self._settings.enforcement:
            case Enforcement.OFF:
                return
            case Enforcement.WARN:
                try:
                    self._waiting.put_nowait((repository, target, manifest, authorization))
                except asyncio.QueueFull:
                    self._counts.not_judged += 1
            case Enforcement.ENFORCE:
                refused = await self._admitted(repository, target, manifest, authorization)
                if refused is not None:
                    raise PolicyError(refused)

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """See Gate. A look-up; what only an older policy or an expired verdict let through is refused.

        `revive_blob` first judges such a thing again, where the caller can wait.
        """
        if self._settings.enforcement is Enforcement.ENFORCE and not self._blob_allowed(repository, digest):
            self._counts.blobs_refused += 1
            raise PolicyError(
                f"policy refuses the blob {digest}: no accepted image of {repository} has it; pull the image again"
            )

    async def revive_blob(self, repository: Repository, digest: Digest) -> None:
        """Where an image with this blob was let through before the policy changed or its time ended: judge it again.

        For a pull that is under way meanwhile. Raises nothing: `admit_blob` then says.
        """
        if self._settings.enforcement is not Enforcement.ENFORCE or self._blob_allowed(repository, digest):
            return
        for record in [one for one in self._all.values() if one.repository == repository and digest in one.blobs]:
            await self._revive(record)
            if self._blob_allowed(repository, digest):
                return

    async def prefetch(self, repository: Repository, target: str, digest: Digest) -> None:
        """Fetch the signatures of `digest` ahead, while its manifest is being fetched. Raises nothing."""
        if self._settings.enforcement is not Enforcement.ENFORCE:
            return
        current = self._current()
        if self._closure.has_manifest(repository, digest, self._clock()):
            return
        await self._find(repository, digest, current.policy.scope_for(repository, target), None)

    async def explain(self, repository: Repository, target: str, manifest: Manifest | Index) -> Verdict:
        """The verdict with its whole reasoning, made anew, nothing remembered."""
        return await self._judge(self._current(), repository, target, manifest, None)

    def servable(self, repository: Repository) -> set[Digest]:
        """Every manifest, config and layer of a repository that passes now."""
        self._current()
        return self._closure.digests(repository, self._clock())

    def status(self) -> GateStatus:
        """What is in force and what it has done so far."""
        loaded = self._current()
        return GateStatus(
            self._settings.enforcement,
            loaded.origin,
            loaded.generation,
            self._policy.problem,
            self._counts.copy(),
            self._shown.recent(),
        )

    # --- manifests ------------------------------------------------------------------------------------------------

    async def _admitted(
        self, repository: Repository, target: str, manifest: Manifest | Index, authorization: str | None
    ) -> str | None:
        """Why `manifest` does not pass; None when it does, and then its blobs do too."""
        loaded, now = self._current(), self._clock()
        if self._passes(loaded, repository, target, manifest, now):
            self._counts.known += 1
            await self._note_child(repository, target, manifest, now)
            return None
        exempt = signature_object(target, manifest)
        if exempt is not None and await self._is_signature_object(repository, exempt, authorization):
            self._counts.signature_objects += 1
            return None
        asked = (repository, target, manifest.digest, loaded.generation)
        remembered = self._refusals.get(asked)
        if remembered is not None and remembered.until > self._monotonic():
            verdict = remembered.verdict
        else:
            verdict = await self._judging.join(
                asked, lambda: self._decide(loaded, repository, target, manifest, authorization)
            )
        if verdict.accepted:
            return None
        self._refused(verdict)
        return verdict.reason

    def _passes(
        self, loaded: LoadedPolicy, repository: Repository, target: str, manifest: Manifest | Index, now: float
    ) -> bool:
        if self._closure.accepted(repository, target, manifest.digest, now):
            return True
        if ":" not in target or loaded.policy.names_reference(repository, target):
            return False
        known = self._closure.has_manifest(repository, manifest.digest, now)
        return known or self._closure.parent(repository, manifest.digest, now) is not None

    async def _note_child(self, repository: Repository, target: str, manifest: Manifest | Index, now: float) -> None:
        """A child of an accepted index: what it is made of passes with it."""
        if self._closure.has_manifest(repository, manifest.digest, now):
            return
        parent = self._closure.parent(repository, manifest.digest, now)
        if parent is not None:
            above, expires = parent
            await self._keep(Record.of(repository, target, manifest, above, self._closure.generation, expires), now)

    async def _decide(
        self,
        loaded: LoadedPolicy,
        repository: Repository,
        target: str,
        manifest: Manifest | Index,
        authorization: str | None,
    ) -> Verdict:
        verdict = await self._judge(loaded, repository, target, manifest, authorization)
        self._counts.judged += 1
        now = self._clock()
        if verdict.accepted:
            self._counts.accepted += 1
            end = now + self._settings.ttl_seconds
            expires = end if verdict.expires is None else min(end, verdict.expires)
            await self._keep(Record.of(repository, target, manifest, None, loaded.generation, expires), now)
        else:
            seconds = limits.NOT_FETCHED_SECONDS if verdict.incomplete else limits.NO_SIGNATURE_SECONDS
            self._remember(repository, target, manifest.digest, loaded.generation, verdict, seconds)
        return verdict

    async def _judge(
        self,
        loaded: LoadedPolicy,
        repository: Repository,
        target: str,
        manifest: Manifest | Index,
        authorization: str | None,
    ) -> Verdict:
        scope = loaded.policy.scope_for(repository, target)
        evidence = await self._find(repository, manifest.digest, scope, authorization)
        now = datetime.fromtimestamp(self._clock(), UTC)
        return await asyncio.to_thread(judge, scope, repository, target, manifest, evidence, now, self._open_signature)

    # --- signatures -----------------------------------------------------------------------------------------------

    async def _find(self, repository: Repository, digest: Digest, scope: Scope, authorization: str | None) -> Evidence:
        if not scope.forms:
            return Evidence()
        key = (repository, digest, scope.forms)
        found = self._evidence.get(key)
        if found is not None and found.until > self._monotonic():
            return found.evidence
        source = self._source if authorization is None else self._source.on_behalf_of(authorization)
        started = self._monotonic()
        stores = self._settings.stores_for(repository)
        evidence = await self._gathering.join(
            (*key, authorization), lambda: gather(source, repository, digest, scope.forms, stores)
        )
        if evidence.bytes <= _EVIDENCE_BYTES and not any(unread.fault for unread in evidence.unread):
            self._evidence[key] = _Found(evidence, started + limits.EVIDENCE_SECONDS)
            self._evidence.move_to_end(key)
            if len(self._evidence) > _EVIDENCE_KEPT:
                self._evidence.popitem(last=False)
        return evidence

    def _remember(
        self, repository: Repository, target: str, digest: Digest, generation: str, verdict: Verdict, seconds: float
    ) -> None:
        # Not longer than the signatures it was made from: else one made meanwhile would be seen after twice the time.
        ends = [found.until for key, found in self._evidence.items() if key[:2] == (repository, digest)]
        until = min([self._monotonic() + seconds, *ends])
        self._refusals[(repository, target, digest, generation)] = _Refused(verdict, until)
        if len(self._refusals) > _REFUSALS_KEPT:
            self._refusals.popitem(last=False)

    async def _is_signature_object(
        self, repository: Repository, exempt: SignatureObject, authorization: str | None
    ) -> bool:
        source = self._source if authorization is None else self._source.on_behalf_of(authorization)
        for layer in exempt.read_first:
            if self._objects.get((repository, layer.digest), 0.0) > self._clock():
                continue
            try:
                async with asyncio.timeout(limits.SECONDS):
                    data = await source.blob(repository, layer.digest, layer.size)
            except (UpstreamError, TimeoutError):
                return False
            if len(data) != layer.size or Digest.of(data, layer.digest.algorithm) != layer.digest:
                return False
            if not is_no_archive(layer, data):
                return False
        end = self._clock() + self._settings.ttl_seconds
        if len(self._objects) > _REFUSALS_KEPT:
            self._objects = {key: until for key, until in self._objects.items() if until > self._clock()}
        self._objects.update({(repository, digest): end for digest in exempt.blobs})
        return True

    # --- what passes ----------------------------------------------------------------------------------------------

    def _current(self) -> LoadedPolicy:
        """The policy in force now; where it has changed, nothing of the old one's closure counts any more."""
        loaded = self._policy.current()
        if loaded.generation != self._closure.generation:
            self._closure = Closure(loaded.generation, self._all.values())
            self._refusals.clear()
        return loaded

    def _blob_allowed(self, repository: Repository, digest: Digest) -> bool:
        loaded, now = self._current(), self._clock()
        return (
            self._closure.has_blob(repository, digest, now)
            or self._objects.get((repository, digest), 0.0) > now
            or loaded.policy.open_for(repository)
        )

    async def _keep(self, record: Record, now: float) -> None:
        if record.generation != self._closure.generation:  # the policy changed meanwhile: it is judged again
            return
        self._closure.add(record, now)
        self._all[(record.repository, record.target, record.digest)] = record
        try:
            await self._ledger.add([record])
        except StorageError as error:
            self._log.warning("an accepted image is not remembered over a restart", error=str(error))

    async def _revive(self, record: Record) -> None:
        above = [
            one for one in self._all.values() if one.repository == record.repository and one.digest == record.parent
        ]
        for one in above:
            if one.parent != record.digest:
                await self._admitted(one.repository, one.target, one.manifest(), None)
        await self._admitted(record.repository, record.target, record.manifest(), None)

    def _refused(self, verdict: Verdict) -> None:
        enforcing = self._settings.enforcement is Enforcement.ENFORCE
        self._counts.refused += enforcing
        self._counts.would_refuse += not enforcing
        self._shown.add(Refusal(self._clock(), enforcing, verdict))
        self._log.warning(
            "image refused" if enforcing else "image would be refused",
            repository=verdict.repository,
            target=verdict.target,
            digest=verdict.digest,
            scope=verdict.scope,
            reason=verdict.reason,
        )
