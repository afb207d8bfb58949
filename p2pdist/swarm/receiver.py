"""The bytes of one chunk on their way in, hashed as they come, before anybody knows whether they are right."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from p2pdist.protocol.chunks import chunk_range

if TYPE_CHECKING:
    from p2pdist.swarm.exchange import Exchange


class Receiver:
    """Takes the bytes of one chunk in order, hashing them as they come.

    The first receiver of a chunk writes straight to the staging file; one beside it (the end game asks two peers)
    keeps its bytes in memory until they are proved, so that a liar can't overwrite what an honest peer sent.
    """

    __slots__ = ("_buffer", "_exchange", "_hash", "index", "offset", "remaining")

    def __init__(self, exchange: Exchange, index: int, direct: bool) -> None:
        self.index = index
        self.offset, end = chunk_range(index, exchange.size, exchange.chunk_size)
        self.remaining = end - self.offset
        self._exchange = exchange
        self._hash = hashlib.sha256()
        self._buffer: bytearray | None = None if direct else bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes. ValueError if they are more than the chunk has; StorageError from the disk."""
        if len(data) > self.remaining:
            raise ValueError(f"chunk {self.index}: {len(data) - self.remaining} bytes too many")
        self._hash.update(data)
        if self._buffer is not None:
            self._buffer += data
        elif not self._exchange.have >> self.index & 1:
            self._exchange.write(self.offset, data)
        self.offset += len(data)
        self.remaining -= len(data)

    def digest(self) -> bytes:
        """sha256 of what came, 32 bytes."""
        return self._hash.digest()

    def flush(self) -> None:
        """Write what was kept in memory; only after it was proved."""
        if self._buffer is not None:
            self._exchange.write(self.offset - len(self._buffer), self._buffer)

    def close(self) -> None:
        """No more bytes come; another receiver may write straight to the file."""
        self._exchange.closed(self)
