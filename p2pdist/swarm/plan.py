"""The plan of an image: which blobs belong together, in which order, from where. Pure.

The layers of one manifest are one rollout: the first request for one of them starts the later ones too, leases go
to earlier layers first, and the chunk size follows the image's size (design page on the swarm, "An image is one
plan").
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2pdist.oci import Digest, Manifest, Repository
from p2pdist.protocol.limits import MAX_BLOB, MAX_BLOBS_PER_JOIN, SMALL_CONTENT

_PLANS = 1024  # remembered manifests; one is a few kilobytes


@dataclass(frozen=True, slots=True)
class PlannedBlob:
    """One blob of a plan; `size` in bytes."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout: its name (the manifest's digest), where it comes from, and its blobs of more than 64 KiB in order."""

    rollout: Digest
    repository: Repository
    blobs: tuple[PlannedBlob, ...]

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)


def plan_of(repository: Repository, manifest: Manifest) -> Plan:
    """The plan of one image manifest: each large blob once, layers in the manifest's order."""
    seen: dict[Digest, PlannedBlob] = {}
    for descriptor in (*manifest.layers, manifest.config):
        if SMALL_CONTENT < descriptor.size <= MAX_BLOB and not descriptor.urls:
            seen.setdefault(descriptor.digest, PlannedBlob(descriptor.digest, descriptor.size))
    return Plan(manifest.digest, repository, tuple(seen.values())[:MAX_BLOBS_PER_JOIN])


def plan_of_blob(repository: Repository, digest: Digest, size: int) -> Plan:
    """The plan of a blob that belongs to no manifest seen here."""
    return Plan(digest, repository, (PlannedBlob(digest, size),))


class Plans:
    """The plans of manifests that passed here lately, found again by a blob's digest."""

    def __init__(self, limit: int = _PLANS) -> None:
        self._limit = limit
        self._plans: OrderedDict[tuple[Repository, Digest], Plan] = OrderedDict()
        self._by_blob: dict[tuple[Repository, Digest], Plan] = {}
        self._sizes: dict[tuple[Repository, Digest], int] = {}

    def learn(self, repository: Repository, manifest: Manifest) -> Plan:
        """Remember the plan of `manifest`; the latest manifest that names a blob decides its plan."""
        key = (repository, manifest.digest)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = plan_of(repository, manifest)
            if len(self._plans) > self._limit:
                self._forget(*self._plans.popitem(last=False))
        self._plans.move_to_end(key)
        for blob in plan.blobs:
            self._by_blob[repository, blob.digest] = plan
        for descriptor in (*manifest.layers, manifest.config):
            self._sizes[repository, descriptor.digest] = descriptor.size
        return plan

    def find(self, repository: Repository, digest: Digest) -> Plan | None:
        """The plan that `digest` belongs to."""
        return self._by_blob.get((repository, digest))

    def size(self, repository: Repository, digest: Digest) -> int | None:
        """The size that a manifest of this repository gave for `digest`."""
        return self._sizes.get((repository, digest))

    def _forget(self, key: tuple[Repository, Digest], plan: Plan) -> None:
        for blob in plan.blobs:
            if self._by_blob.get((key[0], blob.digest)) is plan:
                del self._by_blob[key[0], blob.digest]
        if len(self._sizes) > 64 * self._limit:
            self._sizes.clear()
