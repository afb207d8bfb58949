"""Two sites on one link: what is asked for, and what the link and the other traffic on it make of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SETTLING = 1.5  # seconds in which two flows find their shares
_NEARLY = 0.95  # of what crossed: the rest is the tail of the last chunks


@dataclass(frozen=True, slots=True)
class Sites:
    """`first`, `second`: nodes; registry and tracker are in the first. `rate`: Mbit/s each way; `delay`: ms one way.

    `other_flow`: seconds that a TCP flow of other traffic goes on across the link once the pulls have begun.
    """

    first: int
    second: int
    rate: float = 20.0
    delay: float = 40.0
    other_flow: float | None = None


@dataclass(frozen=True, slots=True)
class Trunk:
    """What crossed the link, with all headers. `copies`: of the image, into the second site; `back`: bytes.

    Shares are of the link's rate, by payload of the other flow and by all that the transfer sent: `flow_alone` before
    the pulls, `flow_while` while both run, `transfer_after` once the flow has stopped. None: there was no such time.
    """

    copies: float
    back: int
    flow_alone: float | None = None
    flow_while: float | None = None
    transfer_after: float | None = None


def trunk(
    sites: Sites,
    size: int,
    crossed: Sequence[tuple[float, int]],
    back: int,
    flow: Callable[[float, float], float] | None = None,
) -> Trunk:
    """`crossed`: (seconds since the pulls began, bytes); `flow`: payload bytes of the other flow between two times."""
    total = crossed[-1][1]
    if flow is None or sites.other_flow is None:
        return Trunk(total / size, back)
    line = sites.rate * 1e6 / 8
    stop = sites.other_flow
    total -= round(flow(0.0, math.inf) * 1514 / 1448)  # full frames
    mine = [(second, count - flow(0.0, second) * 1514 / 1448) for second, count in crossed]
    end = next(second for second, count in mine if count >= _NEARLY * mine[-1][1])
    shared = min(stop, end)
    start = stop + _SETTLING
    after = [(second, count) for second, count in mine if start <= second <= end]
    return Trunk(
        copies=total / size,
        back=back,
        flow_alone=flow(-_SETTLING, 0.0) / _SETTLING / line,
        flow_while=flow(_SETTLING, shared) / (shared - _SETTLING) / line if shared > 2 * _SETTLING else None,
        transfer_after=(after[-1][1] - after[0][1]) / (after[-1][0] - after[0][0]) / line if len(after) > 4 else None,
    )
