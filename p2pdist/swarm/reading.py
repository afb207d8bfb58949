"""Reading chunks from the upstream registry: under a lease, alone, or when nothing else helps.

Bytes are hashed as they come; every chunk is proved by this node's own reading and attested when it is passed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from p2pdist.errors import UpstreamInvalid
from p2pdist.oci import Digest, Repository
from p2pdist.protocol.chunks import chunk_range
from p2pdist.swarm.exchange import Exchange, Receiver
from p2pdist.upstream import Registry


class ReadOwner(Protocol):
    """Who is told how a read goes on."""

    def read_wanted(self, exchange: Exchange, index: int) -> bool:
        """Chunk `index` is next; False ends the read here."""

    def read_bytes(self, exchange: Exchange, count: int) -> None:
        """Bytes came from upstream."""

    def read_half(self, exchange: Exchange, index: int) -> None:
        """Half of the chunk is here."""

    def read_chunk(self, exchange: Exchange, index: int, sha256: bytes) -> None:
        """The chunk is here and proved."""


def runs(mask: int, first: int, end: int) -> Iterable[tuple[int, int]]:
    """The runs of set bits of `mask` within [first, end): pairs of first index and the one after the last."""
    index = first
    while index < end:
        rest = mask >> index
        if not rest:
            return
        index += (rest & -rest).bit_length() - 1
        if index >= end:
            return
        ones = ~(mask >> index)
        stop = min(end, index + (ones & -ones).bit_length() - 1)
        yield index, stop
        index = stop


async def read_run(
    registry: Registry,
    repository: Repository,
    digest: Digest,
    exchange: Exchange,
    first: int,
    end: int,
    owner: ReadOwner,
) -> int:
    """Read chunks [first, end) as one range and prove each.

    Returns the index after the last chunk read (smaller than `end` where the owner ended it). UpstreamError if the
    upstream can't or won't; StorageError from the disk. Chunks that came whole stay proved.
    """
    start, _ = chunk_range(first, exchange.size, exchange.chunk_size)
    _, stop = chunk_range(end - 1, exchange.size, exchange.chunk_size)
    index = first
    receiver: Receiver | None = None
    half = False
    try:
        async with registry.read_blob(repository, digest, start=start, end=stop, size=exchange.size) as body:
            if body.total is not None and body.total != exchange.size:
                raise UpstreamInvalid(f"{digest}: {exchange.size} bytes by the manifest, {body.total} by the registry")
            async for piece in body:
                owner.read_bytes(exchange, len(piece))
                view = memoryview(piece)
                while view:
                    if receiver is None:
                        if not owner.read_wanted(exchange, index):
                            return index
                        receiver, half = exchange.receive(index), False
                    taken = min(len(view), receiver.remaining)
                    receiver.feed(view[:taken])
                    view = view[taken:]
                    if not half and 2 * receiver.remaining <= exchange.length(index):
                        half = True
                        owner.read_half(exchange, index)
                    if not receiver.remaining:
                        sha256 = exchange.prove_read(receiver)
                        receiver = None
                        owner.read_chunk(exchange, index, sha256)
                        index += 1
        if index < end:
            raise UpstreamInvalid(f"{digest}: the body ended {stop - start} bytes early, in chunk {index}")
        return index
    finally:
        if receiver is not None:
            receiver.close()
