"""How a blob is cut into chunks. Pure arithmetic shared by tracker and agents."""

from __future__ import annotations

from p2pdist.protocol.limits import MAX_CHUNK, MAX_CHUNKS, MIN_CHUNK

WANTED_CHUNKS = 512  # per image pulled together: the loss is a constant lag of 20-60 chunk times (swarm design page)


def chunk_size_for(rollout_size: int, blob_size: int) -> int:
    """The chunk size in bytes, a power of two, for a blob of `blob_size` in a rollout of `rollout_size` bytes.

    About `WANTED_CHUNKS` chunks per rollout, within the limits, and never more than `MAX_CHUNKS` per blob.
    """
    size = MIN_CHUNK
    while size < MAX_CHUNK and (rollout_size > size * WANTED_CHUNKS or blob_size > size * MAX_CHUNKS):
        size *= 2
    return size


def chunk_count(size: int, chunk_size: int) -> int:
    """How many chunks a blob of `size` bytes has; 1 for an empty one."""
    return max(1, -(-size // chunk_size))


def chunk_range(index: int, size: int, chunk_size: int) -> tuple[int, int]:
    """First byte and the byte after the last of chunk `index`."""
    start = index * chunk_size
    return start, min(start + chunk_size, size)


def valid_chunk_size(size: int, chunk_size: int) -> bool:
    """Whether `chunk_size` may be used for a blob of `size` bytes: a power of two, within the limits."""
    return (
        MIN_CHUNK <= chunk_size <= MAX_CHUNK
        and chunk_size & (chunk_size - 1) == 0
        and chunk_count(size, chunk_size) <= MAX_CHUNKS
    )
