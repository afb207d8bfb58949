"""What the mirror needs from the rest of the agent. The implementations live below; these are their contracts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from p2pdist.oci import Digest, Repository
from p2pdist.store import BlobFile


class ServedManifest(Protocol):
    """A manifest or index that may be handed to a daemon: bytes as the upstream's, their media type and digest."""

    @property
    def raw(self) -> bytes: ...
    @property
    def media_type(self) -> str: ...
    @property
    def digest(self) -> Digest: ...


class RawAnswer(Protocol):
    """An answer of the upstream that is passed on as it is (referrers, tag lists)."""

    @property
    def status(self) -> int: ...
    @property
    def media_type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class BlobHandle(Protocol):
    """One client's share in the one flight of a blob."""

    @property
    def size(self) -> int | None:
        """Bytes of the whole blob; None while unknown."""
        ...

    @property
    def delivering(self) -> bool:
        """Whether some source has delivered bytes of it, or of what its rollout delivers before it."""
        ...

    async def proved(self) -> BlobFile:
        """Wait until the whole digest is proved and stored. The caller closes the file.

        Cancelling it (the mirror does, and calls it again) never cancels the flight and leaks no open file.

        Raises:
            OperationError: the flight failed for good.
        """
        ...

    def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes from `start` to before `end`, in order, each proved by an attestation before it is yielded.

        The blob's last chunk is withheld until the whole digest is proved. Pieces should be small (256 KiB): a
        client that stops reading holds one. A piece may not change after it was yielded. An empty one says that the
        flight is alive although the next chunk is not here yet.

        Raises:
            OperationError: the flight failed, or the whole digest is another one.
        """
        ...

    def release(self) -> None:
        """The client left or has got everything. Called exactly once."""
        ...


class Source(Protocol):
    """Where manifests and blobs come from. `authorization` is the client's own header value, passed through.

    Every method raises UpstreamError (in its kinds), PolicyError or StorageError, and survives being cancelled.
    """

    async def manifest(
        self, repository: Repository, target: str, *, authorization: str | None = None
    ) -> ServedManifest:
        """The manifest that `target`, a tag or a digest, names."""
        ...

    async def blob(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> BlobHandle:
        """Join or start the one flight of `digest`; raises at once when policy refuses it."""
        ...

    async def blob_info(self, repository: Repository, digest: Digest, *, authorization: str | None = None) -> int:
        """The size of a blob in bytes, from the store or the upstream's HEAD; never starts a download."""
        ...

    async def referrers(
        self, repository: Repository, digest: Digest, artifact_type: str | None, *, authorization: str | None = None
    ) -> RawAnswer:
        """What refers to `digest` (distribution-spec, "Listing Referrers"), as the upstream answers it."""
        ...

    async def tags_list(self, repository: Repository, query: str, *, authorization: str | None = None) -> RawAnswer:
        """One page of tags; `query` is an encoded query string of `n` and `last`, or empty."""
        ...
