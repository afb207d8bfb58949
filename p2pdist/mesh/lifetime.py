"""Until when the other side of a connection is known to be a member: as long as a certificate that it showed holds.

A connection outlives the handshake that checked it, and whoever isn't renewed is to be gone when its certificate ends.
A node that shows a newer certificate on any connection keeps those that it has.
"""

from __future__ import annotations

import math
import ssl

MOST = 4096  # nodes remembered


def ends(tls: object | None) -> float:
    """When the other side's certificate ends, in Unix seconds; never, where there is none."""
    certificate = tls.getpeercert() if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
    if not certificate:
        return math.inf
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


class Lifetimes:
    """Of all nodes that were met lately."""

    def __init__(self) -> None:
        self._ends: dict[bytes, float] = {}

    def seen(self, node: bytes, tls: object | None) -> float:
        """The node has shown a certificate; when it ends (this one, in Unix seconds)."""
        end = ends(tls)
        self._ends[node] = max(end, self._ends.pop(node, 0.0))
        while len(self._ends) > MOST:
            del self._ends[next(iter(self._ends))]
        return end

    def over(self, node: bytes, now: float) -> bool:
        """Whether the last of its certificates has ended."""
        return self._ends.get(node, math.inf) <= now
