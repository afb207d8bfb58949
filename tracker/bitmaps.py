"""Sets of chunks as Python ints (bit i = chunk i), and counting how many nodes have each. Pure.

One operation costs a pass over count/64 machine words: 8 to 16 for the usual 512 to 1,024 chunks of an image.
"""

from __future__ import annotations

from collections.abc import Iterator


def lowest(bits: int) -> int:
    """The first chunk of a set that isn't empty."""
    return (bits & -bits).bit_length() - 1


def span(first: int, count: int) -> int:
    """The chunks `first` .. `first + count - 1`."""
    return ((1 << count) - 1) << first


def run_length(bits: int, first: int, most: int) -> int:
    """How many chunks from `first` on are in the set without a gap, at most `most`."""
    length = 0
    while length < most and bits >> (first + length) & 1:
        length += 1
    return length


def indexes(bits: int) -> Iterator[int]:
    """The chunks of a small set, ascending."""
    while bits:
        index = lowest(bits)
        yield index
        bits &= bits - 1


def from_wire(data: bytes, count: int) -> int:
    """A bitmap as messages carry it (little endian); bits at and above `count` are dropped."""
    return int.from_bytes(data, "little") & ((1 << count) - 1)


class Tally:
    """How many nodes are known to have each chunk; adding or removing a whole bitmap costs O(log nodes) int operations.

    Bit-sliced: bit i of `_planes[p]` is bit p of chunk i's count.
    """

    __slots__ = ("_planes",)

    def __init__(self) -> None:
        self._planes: list[int] = []

    def add(self, bits: int) -> None:
        """One more node has these chunks."""
        if not bits:  # most that join have none
            return
        for position, plane in enumerate(self._planes):
            if not bits:
                return
            self._planes[position] = plane ^ bits
            bits &= plane
        if bits:
            self._planes.append(bits)

    def remove(self, bits: int) -> None:
        """One node fewer has these chunks; it must have been added with them."""
        for position, plane in enumerate(self._planes):
            if not bits:
                return
            self._planes[position] = plane ^ bits
            bits &= ~plane

    def some(self) -> int:
        """The chunks that at least one node has."""
        result = 0
        for plane in self._planes:
            result |= plane
        return result
