"""Who may read what: a client gets of a repository what the upstream would give it now, never more.

What is cached here, on other nodes or at the tracker says nothing about that, so the upstream is asked: one HEAD for
each repository and credential, whose answer holds for `rights_seconds`. A credential is the client's own Authorization
where it sends one, else what this node is configured with. Where that is nothing, the question is whether everybody may
read the repository: then one node in ten seconds asks for the whole cluster.

An upstream that can't be reached refuses nobody whom it accepted in the last `rights_outage_seconds`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from p2pdist.errors import StorageError, UpstreamDenied, UpstreamError, UpstreamNotFound
from p2pdist.oci import Digest, Repository
from p2pdist.pki import read_secret, write_secret
from p2pdist.protocol import messages as wire
from p2pdist.pull.cluster import SharedContent
from p2pdist.pull.flights import Flights
from p2pdist.pull.permits import Permits
from p2pdist.pull.settings import PAUSE, PullSettings
from p2pdist.scope import Scope
from p2pdist.upstream import Upstreams

_log = structlog.get_logger("p2pdist.pull")
_PATIENCE = 3.0  # seconds that a client whom the upstream knows waits for its answer
_DOWN = 10.0  # seconds for which an upstream that didn't answer isn't waited for again
_SAVE_EVERY = 600.0  # seconds: how exact the times in the file are
_PUBLIC = b"everybody may read it"
_PUBLIC_DIGEST = Digest.of(_PUBLIC)

Ask = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class RightsCounts:
    """For metrics."""

    asked: int = 0  # questions to the upstream
    shared: int = 0  # answered by another node's question
    refused: int = 0  # clients that were refused
    unreachable: int = 0  # clients let in on an older answer, because the upstream gave none


class Rights:
    """See the module. `clock` gives Unix seconds; `shared` asks the cluster, and must not take long."""

    def __init__(
        self,
        upstreams: Upstreams,
        shared: SharedContent,
        scope: Scope,
        settings: PullSettings,
        clock: Callable[[], float],
    ) -> None:
        self.counts = RightsCounts()
        self._upstreams = upstreams
        self._shared = shared
        self._scope = scope
        self._settings = settings
        self._clock = clock
        self._permits = Permits(secrets.token_bytes(32))
        self._flights: Flights[None] = Flights(scope)
        self._down: dict[str, float] = {}  # registry -> when it didn't answer
        self._saved = 0.0
        self._saving = False

    # --- questions -----------------------------------------------------------------------------------------------

    def ahead(self, repository: Repository, target: str, authorization: str | None) -> None:
        """Ask now what `admit_manifest` will want to know; returns at once."""
        now = self._clock()
        if not (
            self._known_now(repository, authorization)
            or self._permits.refused(repository, authorization, now)
            or self._is_down(repository, now)
        ):
            ask = self._head_manifest(repository, target, authorization)
            self._flights.start(self._name(repository, authorization), self._asking(repository, authorization, ask))

    async def admit_manifest(self, repository: Repository, target: str, authorization: str | None) -> None:
        """Return if the credential opens the repository.

        Raises:
            UpstreamError: the upstream refuses it (UpstreamDenied), has no such thing for it, or can't be asked and
                never accepted it before.
        """
        await self._admit(repository, target, authorization, self._head_manifest(repository, target, authorization))

    async def admit_blob(self, repository: Repository, digest: Digest, authorization: str | None) -> None:
        """The same for a blob, which is known to be of this repository."""
        registry = self._upstreams.registry(repository.registry)
        await self._admit(
            repository,
            str(digest),
            authorization,
            lambda: registry.head_blob(repository, digest, authorization=authorization, patience=PAUSE),
        )

    def accept(self, repository: Repository, authorization: str | None) -> None:
        """The upstream has just given something of `repository` to this credential."""
        now = self._clock()
        self._permits.accept(repository, authorization, now)
        if authorization is None and now - self._saved > _SAVE_EVERY and self._settings.rights_file is not None:
            self._saved = now
            self._scope.spawn(self.save())

    def grant(self, repository: Repository) -> None:
        """The operator brought an image of `repository` here: it is served while the upstream can't be asked."""
        self._permits.grant(repository)
        self._scope.spawn(self.save())

    def _head_manifest(self, repository: Repository, target: str, authorization: str | None) -> Ask:
        registry = self._upstreams.registry(repository.registry)
        return lambda: registry.head_manifest(repository, target, authorization=authorization, patience=PAUSE)

    # --- answers -------------------------------------------------------------------------------------------------

    async def _admit(self, repository: Repository, target: str, authorization: str | None, ask: Ask) -> None:
        if self._known_now(repository, authorization):
            return
        now = self._clock()
        refused = self._permits.refused(repository, authorization, now)
        if refused is not None:
            self.counts.refused += 1
            raise UpstreamDenied(str(refused), status=refused.status, challenge=refused.challenge)
        bears = self._bears(repository, authorization, now)
        if bears and self._is_down(repository, now):
            self.counts.unreachable += 1
            return
        try:
            async with asyncio.timeout(_PATIENCE if bears else None):
                await self._answer(repository, target, authorization, ask)
        except TimeoutError:
            self._unanswered(repository, "no answer in time")
        except UpstreamDenied:
            self.counts.refused += 1
            raise
        except UpstreamError as error:
            if not error.temporary or not bears:
                self.counts.refused += 1
                raise
            self._unanswered(repository, str(error))

    async def _answer(self, repository: Repository, target: str, authorization: str | None, ask: Ask) -> None:
        """One question at a time for a repository and credential, whatever of it is asked for."""
        name, asking = self._name(repository, authorization), self._asking(repository, authorization, ask)
        others = name in self._flights
        try:
            await self._flights.join(name, asking)
        except UpstreamNotFound:
            if not others:
                raise
            await self._flights.join(f"{name} {target}", asking)  # what they asked for isn't there; this may be

    def _unanswered(self, repository: Repository, why: str) -> None:
        self.counts.unreachable += 1
        self._down[repository.registry] = self._clock()
        _log.warning("the upstream can't be asked who may read: its last answer holds", of=str(repository), why=why)

    def _known_now(self, repository: Repository, authorization: str | None) -> bool:
        return self._permits.accepted(repository, authorization, self._clock(), self._settings.rights_seconds)

    def _bears(self, repository: Repository, authorization: str | None, now: float) -> bool:
        """Whether it is let in while the upstream can't be asked."""
        return (
            self._settings.rights_unreachable == "serve"
            or self._permits.accepted(repository, authorization, now, self._settings.rights_outage_seconds)
            or str(repository) in self._permits.imported
        )

    def _is_down(self, repository: Repository, now: float) -> bool:
        return 0 <= now - self._down.get(repository.registry, -_DOWN) < _DOWN

    def _name(self, repository: Repository, authorization: str | None) -> str:
        return self._permits.key(repository, authorization).hex()

    def _asking(self, repository: Repository, authorization: str | None, ask: Ask) -> Callable[[], Awaitable[None]]:
        return lambda: self._ask(repository, authorization, ask)

    async def _ask(self, repository: Repository, authorization: str | None, ask: Ask) -> None:
        try:
            if authorization is None and await self._upstreams.anonymous(repository.registry):
                await self._ask_for_everybody(repository, ask)
            else:
                self.counts.asked += 1
                await ask()
        except UpstreamDenied as error:
            self._permits.refuse(repository, authorization, error, self._clock())
            raise
        self._down.pop(repository.registry, None)
        self.accept(repository, authorization)

    async def _ask_for_everybody(self, repository: Repository, ask: Ask) -> None:
        """Without credentials all nodes get the same answer: one asks. That something is public is no secret."""
        key = f"tag {repository}:@public"  # no tag has an @ in it; to the tracker this is one more
        answer = await self._others_say(key)
        if isinstance(answer, wire.Content):
            return
        self.counts.asked += 1
        try:
            await ask()
        except UpstreamError as error:
            if answer is None:
                raise
            self._shared.refuse(key, error)
            # While the upstream can't be reached, the cluster's last answer may be had.
            if not error.temporary or not isinstance(await self._others_say(key), wire.Content):
                raise
            return
        if answer is not None:
            self._shared.offer(key, _PUBLIC_DIGEST, "text/plain", _PUBLIC)

    async def _others_say(self, key: str) -> wire.Content | wire.Fetch | None:
        """Content: that it is public; Fetch: this node is to ask for all; None: nothing that helps."""
        try:
            answer = await self._shared.ask(key, None)
        except UpstreamNotFound:
            return None  # of what the others looked for: this node looks for something else
        if isinstance(answer, wire.Content):
            if answer.digest != str(_PUBLIC_DIGEST):
                return None
            self.counts.shared += 1
        return answer

    # --- over a restart ------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """What the node's own credentials opened before the last stop; nothing, where the file can't be read."""
        path = self._settings.rights_file
        if path is None:
            return
        try:
            raw = await asyncio.to_thread(read_secret, path)
            kept = json.loads(raw or b"{}")
            self._permits.own.update({str(name): float(when) for name, when in kept.get("accepted", {}).items()})
            self._permits.imported.update({str(name): None for name in kept.get("imported", [])})
        except (StorageError, ValueError, TypeError, AttributeError) as error:
            _log.warning("what the upstream accepted earlier can't be read", file=str(path), error=str(error))

    async def save(self) -> None:
        """Write it down, readable by this user only."""
        path = self._settings.rights_file
        if path is None or self._saving:
            return
        self._saving = True
        try:
            kept = {"accepted": dict(self._permits.own), "imported": list(self._permits.imported)}
            await asyncio.to_thread(_write, path, json.dumps(kept).encode())
        except StorageError as error:
            _log.warning("what the upstream accepted can't be written down", error=str(error))
        finally:
            self._saving = False


def _write(path: Path, data: bytes) -> None:
    write_secret(path, data)
