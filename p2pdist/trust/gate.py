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

import structlog

from p2pdist.errors import ConfigError, PolicyError, StorageError
from p2pdist.oci import Digest, Index, Manifest, Repository
from p2pdist.trust import limits
from p2pdist.trust.admission import OpenGate
from p2pdist.trust.closure import MAX_RECORDS, Closure, Record
from p2pdist.trust.exempt import ExemptObjects
from p2pdist.trust.flights import Flights
from p2pdist.trust.ledger import Ledger
from p2pdist.trust.library import Library
from p2pdist.trust.policy import Enforcement
from p2pdist.trust.policyfile import LoadedPolicy, PolicyFile
from p2pdist.trust.settings import TrustSettings
from p2pdist.trust.signatures.gpg import Gpgv, OpenSignature, within
from p2pdist.trust.source import SignatureSource
from p2pdist.trust.status import Counts, GateStatus, Refusal, RefusalLog
from p2pdist.trust.verdict import Verdict, judge

_REFUSALS_KEPT = 1024
_WAITING = 256  # judgements that "warn" has not come round to


_Key = tuple[Repository, str, Digest, str, str | None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question: a manifest under a name, by one policy, for whoever has this authorization."""

    loaded: LoadedPolicy
    repository: Repository
    target: str
    manifest: Manifest | Index
    authorization: str | None

    @property
    def key(self) -> _Key:
        return self.repository, self.target, self.manifest.digest, self.loaded.generation, self.authorization


@dataclass(frozen=True, slots=True)
class _Remembered:
    verdict: Verdict
    until: float


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
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic
        self._open_signature = open_signature
        self._log = structlog.get_logger("p2pdist.trust")
        self._library = Library(source, settings, monotonic)
        self._exempt = ExemptObjects(self._library, clock, settings.ttl_seconds)
        self._records = {(one.repository, one.target, one.digest): one for one in records}
        self._closure = Closure(policy.current().generation, self._records.values())
        self._refusals: OrderedDict[_Key, _Remembered] = OrderedDict()
        self._judging: Flights[_Key, Verdict] = Flights()
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
            await self._why_not(repository, target, manifest, authorization)

    # --- what the agent asks --------------------------------------------------------------------------------------

    async def admit_manifest(
        self, repository: Repository, target: str, manifest: Manifest | Index, *, authorization: str | None = None
    ) -> None:
        """See Gate. Takes at most limits.SECONDS, with GPG signatures up to two seconds more."""
        match self._settings.enforcement:
            case Enforcement.OFF:  # `open_gate` makes an OpenGate of it
                return
            case Enforcement.WARN:
                try:
                    self._waiting.put_nowait((repository, target, manifest, authorization))
                except asyncio.QueueFull:
                    self._counts.not_judged += 1
            case Enforcement.ENFORCE:
                refused = await self._why_not(repository, target, manifest, authorization)
                if refused is not None:
                    raise PolicyError(refused)

    def admit_blob(self, repository: Repository, digest: Digest) -> None:
        """See Gate. A look-up; what only an older policy or an expired verdict let through is refused.

        `revive_blob` first judges such a thing again, where the caller can wait.
        """
        if self._settings.enforcement is Enforcement.ENFORCE and not self._has_blob(repository, digest):
            self._counts.blobs_refused += 1
            raise PolicyError(
                f"policy refuses the blob {digest}: no accepted image of {repository} has it; pull the image again"
            )

    async def revive_blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> None:
        """Where an image with this blob passed before the policy changed or its time ended: judge it again.

        For a pull that is under way meanwhile. Raises nothing: `admit_blob` then says.
        """
        if self._settings.enforcement is not Enforcement.ENFORCE or self._has_blob(repository, digest):
            return
        of_repository = [one for one in self._records.values() if one.repository == repository]
        for record in of_repository:
            if digest in record.blobs:
                parents = [one for one in of_repository if one.digest == record.parent]
                for one in (*parents, record):
                    await self._why_not(repository, one.target, one.manifest(), authorization)
                if self._has_blob(repository, digest):
                    return

    async def prefetch(
        self, repository: Repository, target: str, digest: Digest, *, authorization: str | None = None
    ) -> None:
        """Fetch the signatures of `digest` ahead, while its manifest is being fetched. Raises nothing."""
        loaded, now = self._current(), self._clock()
        if self._settings.enforcement is not Enforcement.ENFORCE:
            return
        if not self._closure.has_manifest(repository, digest, now) and not self._closure.parent(
            repository, digest, now
        ):
            await self._library.find(
                repository, digest, loaded.policy.scope_for(repository, target).forms, authorization
            )

    async def explain(self, repository: Repository, target: str, manifest: Manifest | Index) -> Verdict:
        """The verdict with its whole reasoning, whatever is remembered."""
        verdict, _ = await self._judge(_Asked(self._current(), repository, target, manifest, None))
        return verdict

    def servable(self, repository: Repository) -> set[Digest]:
        """Every manifest, config and layer of a repository that passes now; signature objects that were asked for."""
        self._current()
        return self._closure.digests(repository, self._clock()) | self._exempt.digests(repository)

    def status(self) -> GateStatus:
        """What is in force and what it has done so far."""
        loaded = self._current()
        return GateStatus(
            self._settings.enforcement,
            *(loaded.origin, loaded.generation, self._policy.problem),
            self._counts.copy(),
            self._shown.recent(),
        )

    # --- manifests ------------------------------------------------------------------------------------------------

    async def _why_not(
        self, repository: Repository, target: str, manifest: Manifest | Index, authorization: str | None
    ) -> str | None:
        """Why `manifest` does not pass; None when it does, and then its blobs do too."""
        while True:
            asked = _Asked(self._current(), repository, target, manifest, authorization)
            refused = await self._ask(asked)
            if asked.loaded.generation == self._current().generation:  # else the policy changed meanwhile
                return refused

    async def _ask(self, asked: _Asked) -> str | None:
        if await self._known(asked):
            self._counts.known += 1
            return None
        if await self._exempt.admit(asked.repository, asked.target, asked.manifest, asked.authorization):
            self._counts.signature_objects += 1
            return None
        remembered = self._refusals.get(asked.key)
        if remembered is not None and remembered.until > self._monotonic():
            verdict = remembered.verdict
        else:
            verdict = await self._judging.join(asked.key, lambda: self._decide(asked))
        if verdict.accepted:
            return None
        self._refused(verdict)
        return verdict.reason

    async def _known(self, asked: _Asked) -> bool:
        """Whether it passes without being judged; a child of an accepted index does, and what it is made of."""
        repository, digest, now = asked.repository, asked.manifest.digest, self._clock()
        if self._closure.accepted(repository, asked.target, digest, now):
            return True
        if ":" not in asked.target or asked.loaded.policy.names_reference(repository, asked.target):
            return False
        if self._closure.has_manifest(repository, digest, now):
            return True
        parent = self._closure.parent(repository, digest, now)
        if parent is None:
            return False
        await self._keep(asked, parent[0], parent[1])
        return True

    async def _decide(self, asked: _Asked) -> Verdict:
        verdict, fresh_until = await self._judge(asked)
        self._counts.judged += 1
        if verdict.accepted:
            self._counts.accepted += 1
            end = self._clock() + self._settings.ttl_seconds
            await self._keep(asked, None, end if verdict.expires is None else min(end, verdict.expires))
        else:
            # From when the signatures were asked for, so that one made meanwhile is not missed for twice the time.
            short = self._monotonic() + limits.NOT_FETCHED_SECONDS
            self._refusals[asked.key] = _Remembered(verdict, short if verdict.incomplete else fresh_until)
            if len(self._refusals) > _REFUSALS_KEPT:
                self._refusals.popitem(last=False)
        return verdict

    async def _judge(self, asked: _Asked) -> tuple[Verdict, float]:
        """The verdict, and the moment from which on its signatures are too old."""
        scope = asked.loaded.policy.scope_for(asked.repository, asked.target)
        end = self._monotonic() + limits.SECONDS
        found = await self._library.find(asked.repository, asked.manifest.digest, scope.forms, asked.authorization)
        now = datetime.fromtimestamp(self._clock(), UTC)
        left = max(limits.GPG_LAST_SECONDS, end - self._monotonic())
        opener = within(self._open_signature, left, self._monotonic)
        verdict = await asyncio.to_thread(
            judge, scope, asked.repository, asked.target, asked.manifest, found.evidence, now, opener
        )
        return verdict, found.until

    # --- what passes ----------------------------------------------------------------------------------------------

    def _current(self) -> LoadedPolicy:
        """The policy in force now; where it has changed, nothing of the old one's closure counts any more."""
        loaded = self._policy.current()
        if loaded.generation != self._closure.generation:
            self._closure = Closure(loaded.generation, self._records.values())
        return loaded

    def _has_blob(self, repository: Repository, digest: Digest) -> bool:
        loaded = self._current()
        return (
            self._closure.has_blob(repository, digest, self._clock())
            or self._exempt.has_blob(repository, digest)
            or loaded.policy.open_for(repository)
        )

    async def _keep(self, asked: _Asked, parent: Digest | None, expires: float) -> None:
        if asked.loaded.generation != self._closure.generation:  # the policy changed meanwhile: it is judged again
            return
        record = Record.of(asked.repository, asked.target, asked.manifest, parent, asked.loaded.generation, expires)
        self._closure.add(record, self._clock())
        self._records[(record.repository, record.target, record.digest)] = record
        if len(self._records) > MAX_RECORDS:
            last = sorted(self._records.items(), key=lambda item: item[1].expires)[MAX_RECORDS // 2 :]
            self._records = dict(last)
        try:
            await self._ledger.add([record])
        except StorageError as error:
            self._log.warning("an accepted image is not remembered over a restart", error=str(error))

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


async def open_gate(settings: TrustSettings, source: SignatureSource) -> TrustGate | OpenGate:
    """The gate that the settings ask for; raises as TrustGate.open."""
    if settings.enforcement is Enforcement.OFF:
        return OpenGate()
    return await TrustGate.open(settings, source)
