"""What goes when room is needed. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pdist.oci import Digest


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """Something that may go, in the order of going: whole blobs least recently used first, then idle partials.

    A partial goes last because it is the resumption of a pull that somebody may still be waiting for. `used` in seconds
    since the epoch, `size` in bytes on disk.
    """

    partial: bool
    used: float
    digest: Digest
    size: int


def choose(candidates: Iterable[Candidate], needed: int) -> list[Candidate] | None:
    """The first of `candidates` that together free `needed` bytes; None, so that nothing goes in vain, if all can't."""
    chosen: list[Candidate] = []
    for candidate in sorted(candidates):
        if needed <= 0:
            break
        chosen.append(candidate)
        needed -= candidate.size
    return chosen if needed <= 0 else None
