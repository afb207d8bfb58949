"""The fluid limit, and how the pulls of a rollout compare with it. Pure arithmetic.

Sizes in bytes, rates in Mbit/s (10^6 bits), times in seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A node's access link, and when its pull begins (seconds after the first one)."""

    up: float
    down: float
    offset: float = 0.0
    trunk: float = math.inf  # of the link that its site hangs on, where the source is in another one


def fluid_limits(size: int, source: float, links: Sequence[Link]) -> list[float]:
    """Seconds from its own start in which each node could have the image if bytes were a fluid.

    Together: max(F/u_source, F/d_node, N*F/(u_source + sum u_i)). Spread starts: a node that comes later finds what the
    source has sent before, so only the rest of F/u_source counts for it, and the joint capacity of all (the third term)
    is left out, which makes the limit lower and the ratio worse, never better. F/trunk holds for a site behind one.
    """
    bits = size * 8 / 1e6
    together = all(link.offset == 0 for link in links)
    joint = len(links) * bits / (source + sum(link.up for link in links)) if together else 0.0
    return [max(bits / source - link.offset, bits / link.down, bits / link.trunk, joint) for link in links]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Median and worst of time/limit over a group of nodes, and by how many seconds the worst is over its limit."""

    p50: float
    last: float
    over: float


def ratios(seconds: Sequence[float], limits: Sequence[float]) -> Ratios:
    """Of one rollout's nodes. The median of an even number is the upper one of the middle two (the stricter)."""
    if not seconds:
        return Ratios(math.inf, math.inf, math.inf)
    pairs = list(zip(seconds, limits, strict=True))
    sorted_ratios = sorted(s / limit for s, limit in pairs)
    return Ratios(sorted_ratios[len(sorted_ratios) // 2], sorted_ratios[-1], max(s - limit for s, limit in pairs))


def starts(pattern: str, count: int, seed: int) -> list[float]:
    """Offsets of the pulls: `together`, `poisson:S` (gaps exponential, S seconds in all on average), `waves:K:S`
    (K groups, S seconds apart). ValueError says what was wrong.
    """
    kind, *numbers = pattern.split(":")
    if kind == "together" and not numbers:
        return [0.0] * count
    if kind == "poisson" and len(numbers) == 1 and float(numbers[0]) > 0:
        chance = random.Random(seed)
        offsets = [0.0]
        for _ in range(count - 1):
            offsets.append(offsets[-1] + chance.expovariate(count / float(numbers[0])))
        return offsets
    if kind == "waves" and len(numbers) == 2 and int(numbers[0]) > 0:
        waves, apart = int(numbers[0]), float(numbers[1])
        return [(i * waves // count) * apart for i in range(count)]
    raise ValueError(f"start pattern {pattern!r}: together, poisson:SECONDS or waves:COUNT:SECONDS")
