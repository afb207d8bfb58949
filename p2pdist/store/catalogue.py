"""What the stored manifests name: the edges between blobs, read once for each manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from p2pdist.errors import InputError, StorageError
from p2pdist.oci import Digest, Index, Manifest, parse_manifest
from p2pdist.store.store import Store

_SIGNATURE_TAG = re.compile(r"(sha256|sha512)-([0-9a-f]+)(\.[a-z]+)?")  # cosign's tags; OCI's fallback for referrers
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Node:
    """One manifest or index: manifests it lists, config and layers, and the image that it signs or describes.

    `size`: bytes of its own; `blobs`: their sizes by digest.
    """

    size: int
    children: tuple[Digest, ...]
    blobs: Mapping[Digest, int]
    subject: Digest | None

    @classmethod
    def of(cls, parsed: Manifest | Index) -> Node:
        subject = parsed.subject.digest if parsed.subject is not None else None
        if isinstance(parsed, Index):
            return cls(len(parsed.raw), tuple(one.digest for one in parsed.manifests), {}, subject)
        blobs = {one.digest: one.size for one in (parsed.config, *parsed.layers)}
        return cls(len(parsed.raw), (), blobs, subject)


class Catalogue:
    """The nodes of a store's manifests. `refresh` reads those that are new; `learn` spares it the reading."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[Digest, Node | None] = {}  # None: it can't be read as a manifest

    def learn(self, parsed: Manifest | Index) -> None:
        """A manifest passed here."""
        self._nodes[parsed.digest] = Node.of(parsed)

    @property
    def nodes(self) -> dict[Digest, Node]:
        """As of the last `refresh`, and what was learnt since."""
        return {digest: node for digest, node in self._nodes.items() if node is not None}

    async def refresh(self) -> dict[Digest, Node]:
        """The nodes of every stored manifest. One that can't be read is left out."""
        noted = self._store.noted()
        self._nodes = {digest: node for digest, node in self._nodes.items() if digest in noted}
        for digest, notes in noted.items():
            if digest not in self._nodes and self._store.find(digest) is not None:
                self._nodes[digest] = await self._read(digest, next(iter(notes.values()), None))
        return self.nodes

    async def _read(self, digest: Digest, media_type: str | None) -> Node | None:
        try:
            blob = await self._store.open_blob(digest)
            if blob is None:
                return None
            with blob:
                return Node.of(parse_manifest(blob.pread(0, blob.size), media_type, digest.algorithm))
        except (InputError, StorageError) as error:
            _log.warning("a stored manifest can't be read", digest=str(digest), error=str(error))
            return None


def size_of(nodes: Mapping[Digest, Node], image: Iterable[Digest]) -> dict[Digest, int]:
    """The bytes of each part of an image, those that are still to come too; parts that nothing is known of have 0."""
    sizes: dict[Digest, int] = {}
    for digest in image:
        node = nodes.get(digest)
        if node is None:
            sizes.setdefault(digest, 0)
        else:
            sizes[digest] = node.size
            sizes.update(node.blobs)
    return sizes


def signed_by(nodes: Mapping[Digest, Node], tags: Mapping[tuple[str, str], str]) -> dict[Digest, set[Digest]]:
    """The signatures, attestations and other companions of each image that has some: manifests by subject or tag."""
    found: dict[Digest, set[Digest]] = {}
    for digest, node in nodes.items():
        if node.subject is not None:
            found.setdefault(node.subject, set()).add(digest)
    for (_, tag), text in tags.items():
        match = _SIGNATURE_TAG.fullmatch(tag)
        if match is not None and len(match[2]) == {"sha256": 64, "sha512": 128}[match[1]]:
            found.setdefault(Digest(match[1], match[2]), set()).add(Digest.parse(text))
    return found


def closure(
    nodes: Mapping[Digest, Node], companions: Mapping[Digest, set[Digest]], roots: Iterable[Digest]
) -> set[Digest]:
    """All that an image is: from these manifests on, what they name and what signs them, as far as it is known here."""
    seen: set[Digest] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        node = nodes.get(digest)
        if node is not None:
            seen.update(node.blobs)
            waiting += node.children
        waiting += companions.get(digest, ())
    return seen
