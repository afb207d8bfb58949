"""What may be served under the present policy: accepted manifests, their children, their blobs. Pure.

Blobs name no manifest. So for each repository and policy generation the closure is kept: accepted manifest, the
children of an accepted index, and the config and layers of each of those that has been seen. The same digest can be
in one repository's closure and not in another's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pdist.oci import Digest, Index, Manifest, Repository, parse_manifest

MAX_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class Record:
    """A manifest that was let through.

    Attributes:
        target: the tag or digest that it was accepted as.
        parent: the index whose child it is; None where it was judged itself.
        generation: the policy's.
        expires: seconds since 1970.
    """

    repository: Repository
    target: str
    digest: Digest
    parent: Digest | None
    media_type: str
    raw: bytes = field(repr=False)
    generation: str
    expires: float
    children: frozenset[Digest] = field(repr=False)
    blobs: frozenset[Digest] = field(repr=False)

    @classmethod
    def of(
        cls,
        repository: Repository,
        target: str,
        manifest: Manifest | Index,
        parent: Digest | None,
        generation: str,
        expires: float,
    ) -> Record:
        """The record of a manifest."""
        children: frozenset[Digest] = frozenset()
        blobs: frozenset[Digest] = frozenset()
        if isinstance(manifest, Index):
            children = frozenset(one.digest for one in manifest.manifests)
        else:
            blobs = frozenset({manifest.config.digest, *(layer.digest for layer in manifest.layers)})
        return cls(
            *(repository, target, manifest.digest, parent, manifest.media_type, manifest.raw),
            *(generation, expires, children, blobs),
        )

    def manifest(self) -> Manifest | Index:
        """The manifest itself."""
        return parse_manifest(self.raw, self.media_type, self.digest.algorithm)


@dataclass(frozen=True, slots=True)
class _Key:
    repository: Repository
    digest: Digest


class Closure:
    """The closure of one policy generation. Every answer takes the time, in seconds since 1970."""

    def __init__(self, generation: str, records: Iterable[Record] = ()) -> None:
        self.generation = generation
        self._records: dict[tuple[Repository, str, Digest], Record] = {}
        self._manifests: dict[_Key, float] = {}
        self._parents: dict[_Key, tuple[Digest, float]] = {}
        self._blobs: dict[_Key, float] = {}
        for record in records:
            if record.generation == generation:
                self.add(record, record.expires - 1)

    def add(self, record: Record, now: float) -> None:
        """Let `record`, which is of this generation, through. Of too many the ones that end first go."""
        if len(self._records) >= MAX_RECORDS:
            self._rebuild(now)
        self._records[(record.repository, record.target, record.digest)] = record
        self._count(record)

    def _count(self, record: Record) -> None:
        def extend(table: dict[_Key, float], digest: Digest) -> None:
            key = _Key(record.repository, digest)
            table[key] = max(table.get(key, 0.0), record.expires)

        extend(self._manifests, record.digest)
        for digest in record.blobs:
            extend(self._blobs, digest)
        for digest in record.children:
            key = _Key(record.repository, digest)
            if record.expires > self._parents.get(key, (digest, 0.0))[1]:
                self._parents[key] = (record.digest, record.expires)

    def _rebuild(self, now: float) -> None:
        alive = sorted((one for one in self._records.values() if one.expires > now), key=lambda one: one.expires)
        kept = alive[-MAX_RECORDS // 2 :]
        self._records = {(one.repository, one.target, one.digest): one for one in kept}
        self._manifests, self._parents, self._blobs = {}, {}, {}
        for one in kept:
            self._count(one)

    def accepted(self, repository: Repository, target: str, digest: Digest, now: float) -> bool:
        """Whether `digest` was accepted when it was asked for as exactly `target`."""
        record = self._records.get((repository, target, digest))
        return record is not None and record.expires > now

    def has_manifest(self, repository: Repository, digest: Digest, now: float) -> bool:
        """Whether it was accepted for this repository, under whatever tag, or let through as a child."""
        return self._manifests.get(_Key(repository, digest), 0.0) > now

    def parent(self, repository: Repository, digest: Digest, now: float) -> tuple[Digest, float] | None:
        """An accepted index that has it as a child, and until when; None when there is none."""
        found = self._parents.get(_Key(repository, digest))
        return found if found is not None and found[1] > now else None

    def has_blob(self, repository: Repository, digest: Digest, now: float) -> bool:
        """Whether it belongs to a manifest that was let through."""
        return self._blobs.get(_Key(repository, digest), 0.0) > now

    def digests(self, repository: Repository, now: float) -> set[Digest]:
        """Everything of a repository that may be served: manifests, children of indexes, configs, layers."""
        served = {key.digest for key, end in self._manifests.items() if key.repository == repository and end > now}
        served |= {key.digest for key, end in self._blobs.items() if key.repository == repository and end > now}
        return served | {
            key.digest for key, (_, end) in self._parents.items() if key.repository == repository and end > now
        }
