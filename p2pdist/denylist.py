"""What this node gives to nobody: the cluster's deny list, kept on disk so that it holds while no tracker answers.

What is denied is refused at the door to the daemon (`guard`), never begun, ended where it is under way, and taken out
of the store, so that no peer gets it either. What a denied tag is found to name is refused by its digest too, in that
repository, and so are the manifests of a denied index: daemons that know the digest already ask for nothing else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from p2pdist.errors import InputError, PolicyError, StorageError
from p2pdist.oci import Digest, ImagePattern, Index, Manifest, Repository
from p2pdist.pki import read_secret, write_secret
from p2pdist.protocol import messages as wire
from p2pdist.protocol.limits import MAX_DENIED
from p2pdist.store import Store
from p2pdist.store.catalogue import Catalogue, Node, closure
from p2pdist.swarm.service import SwarmService

MAX_LEARNT = 65_536  # digests that denied tags and indexes were found to name; the one learnt first is forgotten first
SETTLE = 1.0  # seconds between two sweeps, at least
_log = structlog.get_logger("p2pdist.denylist")


class _File(msgspec.Struct):
    entries: list[wire.Denied] = []
    learnt: list[tuple[str, str, str]] = []  # repository, digest, subject of the entry


class Denials:
    """The list, looked up quickly. Pure."""

    def __init__(self) -> None:
        self._whys: dict[str, str] = {}  # by subject
        self._patterns: dict[str, ImagePattern] = {}  # those that no key finds
        self._digests: dict[Digest, str] = {}
        self._named: dict[tuple[str, str], str] = {}  # repository and tag, or digest
        self._learnt: OrderedDict[tuple[str, str], str] = OrderedDict()  # repository and digest -> subject

    def __len__(self) -> int:
        return len(self._whys)

    @property
    def entries(self) -> list[wire.Denied]:
        """The list as it was told."""
        return [wire.Denied(subject, why) for subject, why in self._whys.items()]

    @property
    def learnt(self) -> list[tuple[str, str, str]]:
        """What was found to be denied as well: repository, digest, subject."""
        return [(repository, digest, subject) for (repository, digest), subject in self._learnt.items()]

    def add(self, entry: wire.Denied) -> None:
        """One more; one that can't be understood is left out, and logged: no list may stop an agent."""
        if len(self._whys) >= MAX_DENIED and entry.subject not in self._whys:
            _log.error("the deny list is too long; an entry is left out", subject=entry.subject)
            return
        try:
            pattern = ImagePattern.parse(entry.subject)
        except InputError as error:
            _log.error("an entry of the deny list is not understood", subject=entry.subject, error=str(error))
            return
        self._whys[entry.subject] = entry.why
        if pattern.digest is not None and pattern.repository is None:
            self._digests[pattern.digest] = entry.subject
        elif pattern.repository is not None and (pattern.digest or pattern.tag):
            self._named[pattern.repository, str(pattern.digest or pattern.tag)] = entry.subject
        else:
            self._patterns[entry.subject] = pattern

    def remove(self, subject: str) -> None:
        """No longer denied, nor what was learnt by it."""
        self._whys.pop(subject, None)
        self._patterns.pop(subject, None)
        self._digests = {digest: one for digest, one in self._digests.items() if one != subject}
        self._named = {name: one for name, one in self._named.items() if one != subject}
        self._learnt = OrderedDict((name, one) for name, one in self._learnt.items() if one != subject)

    def learn(self, repository: str, digest: Digest, subject: str) -> None:
        """The entry `subject` is found to mean this too."""
        if subject in self._whys:
            self._learnt.setdefault((repository, str(digest)), subject)
            if len(self._learnt) > MAX_LEARNT:
                self._learnt.popitem(last=False)

    def find(self, repository: str, tag: str | None, digest: Digest | None) -> wire.Denied | None:
        """The entry that denies this, as far as it is known what it is."""
        subject = self._digests.get(digest) if digest is not None else None
        for name in filter(None, (tag, str(digest or ""))):
            subject = subject or self._named.get((repository, name)) or self._learnt.get((repository, name))
        if subject is None:
            matching = (one.text for one in self._patterns.values() if one.matches(repository, tag, digest))
            subject = next(matching, None)
        return wire.Denied(subject, self._whys[subject]) if subject is not None else None

    def everywhere(self, digest: Digest) -> bool:
        """Whether a digest is denied in every repository."""
        return digest in self._digests


class DenyList:
    """The list in force. `load` it before anything is served; `heard` takes what the tracker says; `run` does it."""

    def __init__(self, store: Store, swarms: SwarmService, catalogue: Catalogue, file: Path) -> None:
        self.denials = Denials()
        self.refused = 0  # requests
        self.removed = 0  # blobs
        self._store = store
        self._swarms = swarms
        self._catalogue = catalogue
        self._file = file
        self._parts: list[wire.Denied] = []
        self._wake = asyncio.Event()

    async def load(self) -> None:
        """The list of an earlier run. Raises StorageError: an agent that can't tell must not start."""
        raw = await asyncio.to_thread(read_secret, self._file)
        if raw is not None:
            try:
                kept = msgspec.json.decode(raw, type=_File)
            except msgspec.DecodeError as error:
                raise StorageError(f"{self._file}: not a deny list: {error}; restore it, or delete it") from error
            self._replace(kept.entries)
            for repository, digest, subject in kept.learnt:
                self.denials.learn(repository, Digest.parse(digest), subject)
        self._swarms.denied = self.denials.everywhere
        self._wake.set()

    async def run(self) -> None:
        """Write down what was heard and take out what is denied, for ever."""
        written = b""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.sweep()
                raw = msgspec.json.encode(_File(self.denials.entries, self.denials.learnt))
                if raw != written:
                    await asyncio.to_thread(write_secret, self._file, raw)
                    written = raw
            except (StorageError, InputError) as error:  # it is refused all the same
                _log.error("the deny list is in force, but not on disk or what it denies still is", error=str(error))
            await asyncio.sleep(SETTLE)

    # --- what the tracker says ----------------------------------------------------------------------------------

    def heard(self, message: wire.DenyList | wire.DenyChange) -> None:
        """In force at once; the store and the disk follow."""
        if isinstance(message, wire.DenyList):
            self._parts += message.entries[: max(0, MAX_DENIED - len(self._parts))]
            if not message.final:
                return
            self._replace(self._parts)
            self._parts = []
        else:
            for subject in message.removed:
                self.denials.remove(subject)
            for entry in message.added:
                self.denials.add(entry)
        self._learn_from(self._catalogue.nodes, self._store.noted())
        self._wake.set()

    def _replace(self, entries: Iterable[wire.Denied]) -> None:
        """In one step: nothing passes in between."""
        known, self.denials = self.denials, Denials()
        for entry in entries:
            self.denials.add(entry)
        for repository, digest, subject in known.learnt:
            self.denials.learn(repository, Digest.parse(digest), subject)
        self._swarms.denied = self.denials.everywhere

    def look_again(self) -> None:
        """Something came into the store without having been asked for at the door."""
        self._wake.set()

    # --- at the door --------------------------------------------------------------------------------------------

    def admit(self, repository: Repository, target: str | None, digest: Digest | None) -> None:
        """Return unless this is denied, as far as it is known what it is; else PolicyError."""
        tag = target if target is not None and ":" not in target else None
        denied = self.denials.find(str(repository), tag, digest)
        if denied is not None:
            raise self._refusal(f"{repository}{f':{tag}' if tag else ''}", denied)

    def admit_manifest(self, repository: Repository, target: str, parsed: Manifest | Index) -> None:
        """Return unless the manifest, the name it was asked by, or a part of it is denied; else PolicyError."""
        name, tag = str(repository), target if ":" not in target else None
        denied = self.denials.find(name, tag, parsed.digest)
        if denied is None and isinstance(parsed, Manifest):
            parts = (one.digest for one in (parsed.config, *parsed.layers))
            denied = next(filter(None, (self.denials.find(name, None, part) for part in parts)), None)
        if denied is None:
            return
        self._mean(name, parsed.digest, Node.of(parsed), denied.subject)
        self._wake.set()  # it was stored when it was looked at
        raise self._refusal(f"{repository}{f':{tag}' if tag else ''}", denied)

    def _mean(self, repository: str, digest: Digest, node: Node, subject: str) -> None:
        """A denied manifest: its digest and those of its children are refused in this repository, too."""
        for one in (digest, *node.children):
            self.denials.learn(repository, one, subject)

    def _refusal(self, what: str, denied: wire.Denied) -> PolicyError:
        self.refused += 1
        _log.warning("denied", image=what, by=denied.subject, why=denied.why)
        return PolicyError(f"{what} is on the cluster's deny list: {denied.why} (by the entry {denied.subject})")

    # --- what is here already -----------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """End what is under way and delete what is stored of that which is denied. Raises StorageError."""
        nodes = await self._catalogue.refresh()
        noted = self._store.noted()
        self._learn_from(nodes, noted)
        gone = {digest for digest, names in noted.items() if names and all(self._denied(one, digest) for one in names)}
        gone |= self._swept_transfers()
        left = closure(nodes, {}, nodes.keys() - gone)
        condemned = closure(nodes, {}, gone) - left
        condemned |= {blob.digest for blob in self._store.stored() if self.denials.everywhere(blob.digest)}
        condemned |= {digest for digest, _, _ in self._store.partials() if self.denials.everywhere(digest)}
        for digest in condemned:
            await self._swarms.withdraw(digest, PolicyError(f"{digest} is on the cluster's deny list"))
            if self._store.find(digest) is not None:
                self.removed += 1
                _log.warning("denied content is removed", digest=str(digest))
            await self._store.remove(digest)

    def _learn_from(self, nodes: Mapping[Digest, Node], noted: Mapping[Digest, Mapping[str, str]]) -> None:
        """What denied tags name, as far as it was seen, and what denied indexes list."""
        for (repository, tag), text in self._store.tags().items():
            denied = self.denials.find(repository, tag, None)
            if denied is not None:
                self.denials.learn(repository, Digest.parse(text), denied.subject)
        for digest, node in nodes.items():
            for repository in noted.get(digest, ()):
                denied = self.denials.find(repository, None, digest)
                if denied is not None:
                    self._mean(repository, digest, node, denied.subject)

    def _denied(self, repository: str, digest: Digest) -> bool:
        return self.denials.find(repository, None, digest) is not None

    def _swept_transfers(self) -> set[Digest]:
        """Manifests whose blobs are under way, of those that are denied now."""
        plans = {transfer.rollout.plan for transfer in self._swarms.transfers}
        return {plan.rollout for plan in plans if self._denied(str(plan.repository), plan.rollout)}
