"""With no tracker: which chunk this node may read from upstream by itself. Pure.

Design page on the swarm, "With no tracker" (measured: no chunk read twice, 1.007-1.015). Times in seconds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_AFTER = 1.0  # without a tracker for so long


@dataclass(frozen=True, slots=True)
class Orphaned:
    """Since when no tracker is there, and how many nodes the cluster had then."""

    since: float
    nodes: int


def choose(
    blob: str,
    wanted: int,
    rivals: Sequence[bytes],
    claims: Mapping[int, float],
    chunk_time: float,
    now: float,
    orphaned: Orphaned,
    me: bytes,
    rng: random.Random,
) -> int | None:
    """The chunk to read, if any.

    Of a chunk that nobody near has (`wanted`: a bit mask) and nobody claimed lately, the owner is whoever hashes
    highest among `me` and its live unfinished neighbours (`rivals`), if that hash also makes it likely to be the
    highest of the whole cluster; both rules relax with time.
    """
    if now < orphaned.since + _AFTER:
        return None
    tau = max(2.0, 8 * chunk_time)
    indexes = list(bits(wanted))
    rng.shuffle(indexes)
    for index in indexes:
        claim = claims.get(index)
        if claim is not None and now - claim < 5 * tau:
            continue
        wait = now - max(orphaned.since, 0.0 if claim is None else claim + 5 * tau)
        mine = _share(blob, index, me)
        rank = sum(_share(blob, index, rival) > mine for rival in rivals)
        likely = (1 - mine) * orphaned.nodes <= 1 + wait / tau or len(rivals) + 1 >= orphaned.nodes
        if rank <= wait / (5 * tau) and likely:
            return index
    return None


def bits(mask: int) -> Iterable[int]:
    """The indexes of the set bits, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _share(blob: str, index: int, node: bytes) -> float:
    """A number in [0, 1) that every node computes alike."""
    seed = hashlib.sha256(b"%s|%d|%s" % (blob.encode(), index, node)).digest()
    return int.from_bytes(seed[:6], "big") / float(1 << 48)
