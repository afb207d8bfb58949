"""What the neighbours say of blobs. Plain state, synchronous."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from p2pdist.errors import ProtocolError
from p2pdist.protocol.chunks import chunk_count, valid_chunk_size
from p2pdist.torrent.live import Live, Theirs
from p2pdist.torrent.wire import Open

_OPEN = 4096  # blobs that one neighbour may have open


class Near:
    """By neighbour and by blob."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, dict[int, Theirs]] = {}
        self._blobs: dict[str, dict[bytes, Theirs]] = {}

    def opened(self, node: bytes, frame: Open) -> Theirs:
        """A neighbour takes part in a swarm, or says what has changed. ProtocolError if that can't be."""
        numbers = self._numbers.setdefault(node, {})
        if not valid_chunk_size(frame.size, frame.chunk_size) or len(numbers) >= _OPEN:
            raise ProtocolError(f"an impossible swarm: {frame.size} bytes in chunks of {frame.chunk_size}")
        self.closed(node, frame.number)
        full = (1 << chunk_count(frame.size, frame.chunk_size)) - 1
        have = int.from_bytes(frame.have, "little") & full
        theirs = Theirs(frame.digest, frame.size, frame.chunk_size, full, have, frame.torrents, whole=have == full)
        numbers[frame.number] = theirs
        self._blobs.setdefault(frame.digest, {})[node] = theirs
        return theirs

    def closed(self, node: bytes, number: int) -> Theirs | None:
        """A neighbour left a swarm."""
        theirs = self._numbers.get(node, {}).pop(number, None)
        if theirs is not None:
            peers = self._blobs[theirs.digest]
            if peers.get(node) is theirs:
                del peers[node]
            if not peers:
                del self._blobs[theirs.digest]
        return theirs

    def find(self, node: bytes, number: int) -> Theirs | None:
        """What a neighbour calls by this number."""
        return self._numbers.get(node, {}).get(number)

    def has(self, node: bytes, number: int, indexes: Iterable[int]) -> Theirs | None:
        """A neighbour answers for chunks. None: it is in no such swarm."""
        theirs = self.find(node, number)
        if theirs is not None:
            theirs.have |= sum(1 << index for index in set(indexes)) & theirs.full
            theirs.whole = theirs.have == theirs.full
        return theirs

    def lacks(self, node: bytes, number: int, index: int) -> Theirs | None:
        """A neighbour does not answer for a chunk any more. None: it is in no such swarm."""
        theirs = self.find(node, number)
        if theirs is not None:
            theirs.have &= ~(1 << index)
            theirs.whole = theirs.have == theirs.full
        return theirs

    def gone(self, node: bytes) -> None:
        """The neighbour is gone."""
        for number in list(self._numbers.get(node, ())):
            self.closed(node, number)
        self._numbers.pop(node, None)

    def of(self, live: Live) -> Iterator[tuple[bytes, Theirs]]:
        """The neighbours in the same swarm."""
        for node, theirs in self._blobs.get(live.exchange.name, {}).items():
            if live.fits(theirs):
                yield node, theirs

    def claimants(self, live: Live, index: int) -> list[bytes]:
        """Who says that it proved the chunk."""
        return [node for node, theirs in self.of(live) if theirs.have >> index & 1]

    def claimed(self, live: Live) -> int:
        """Bit mask of the chunks that somebody near proved."""
        mask = 0
        for _, theirs in self.of(live):
            mask |= theirs.have
        return mask

    def unfinished(self, live: Live) -> list[bytes]:
        """Who lacks chunks."""
        return [node for node, theirs in self.of(live) if not theirs.whole]
