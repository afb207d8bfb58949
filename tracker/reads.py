"""How the reads of one rollout from upstream go: what is usual, and who shows progress. Pure.

A node's word counts once, however often it reads: a few that answer at once, or never, don't move what is usual.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MOST = 32  # nodes that are remembered, those that were given something to read last


class _Reader:
    __slots__ = ("came", "lost", "out", "took")

    def __init__(self) -> None:
        self.took = 0.0  # seconds until its last read was half there; 0: there was none
        self.lost = 0.0  # seconds after which one was given up, since then
        self.came = float("-inf")  # when it showed progress last
        self.out: dict[Hashable, float] = {}  # what it reads and hasn't half of, and since when, the oldest first


class Reads:
    """The latest reads of each node of a rollout. Reads are named by any objects. Times in seconds."""

    __slots__ = ("_readers",)

    def __init__(self) -> None:
        self._readers: OrderedDict[Hashable, _Reader] = OrderedDict()

    def began(self, now: float, node: Hashable, read: Hashable) -> None:
        """The node is to read something."""
        reader = self._readers.get(node)
        if reader is None:
            reader = self._readers[node] = _Reader()
            if len(self._readers) > MOST:
                self._readers.popitem(last=False)
        else:
            self._readers.move_to_end(node)
        reader.out[read] = now

    def came(self, now: float, node: Hashable, read: Hashable, took: float | None = None) -> None:
        """There is progress; `took`: half of it has come, so many seconds after it began."""
        reader = self._readers.get(node)
        if reader is not None:
            reader.came = now
            if took is not None:
                reader.out.pop(read, None)
                reader.took, reader.lost = took, 0.0

    def given_up(self, now: float, node: Hashable, read: Hashable) -> None:
        """It took too long."""
        reader = self._readers.get(node)
        if reader is not None and read in reader.out:
            reader.lost = max(reader.lost, now - reader.out.pop(read))

    def ended(self, node: Hashable, read: Hashable) -> None:
        """It is over, for whatever other reason."""
        reader = self._readers.get(node)
        if reader is not None:
            reader.out.pop(read, None)

    def took(self, node: Hashable) -> float:
        """How long the node's last read took until half of it was there; 0: not known."""
        reader = self._readers.get(node)
        return reader.took if reader is not None else 0.0

    def usual(self, now: float, unknown: float, most: float) -> float:
        """How long it takes until half of a read is there, for the node in the middle.

        Who is reading counts with the age of that, up to `most`, and whose first read it is with `unknown` at least: an
        upstream that is slow for all is seen before it has given anything, whatever a few say who claim to have read.
        """
        times = []
        for reader in self._readers.values():
            waits = min(most, now - next(iter(reader.out.values()))) if reader.out else 0.0
            if reader.took:
                times.append(max(reader.took, reader.lost, waits))
            elif reader.out or reader.lost:
                times.append(max(unknown, waits))
        times.sort()
        return times[(len(times) - 1) // 2] if times else 0.0

    def others(self, since: float, node: Hashable) -> int:
        """How many other nodes have shown progress after `since`."""
        return sum(reader.came > since for other, reader in self._readers.items() if other is not node)
