"""How the mirror behaves in time. Every number's reason: design page "clients", sections 2 and 5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from p2pdist.mirror.access import Access


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """All times in seconds.

    Attributes:
        serve: `auto`: a blob leaves once its digest is proved, or from `header_deadline` on chunk by proved chunk;
            `proved`: never a byte of a body before the whole digest is proved.
        decide_deadline: a manifest, or the first bytes of a blob from any source, must be there by then, else 404.
            Under 15 (a Docker ping) and 30 (containerd's wait for headers).
        header_deadline: when the headers of a blob that is being delivered go out although it isn't proved.
        range_deadline: when a range deep in such a blob, of which no byte came, is answered 404. Under 30.
        stall: mid-body without a proved byte for so long: the connection is closed.
        client_stall: a client that takes nothing for so long is dropped. Long: a daemon unpacks while it pulls.
        refuse: after a body that had to be cut, how long requests for its blob are answered 404.
        stop: how long a stopping server finishes what it is serving.
        head: what a new connection has for the head of its first request, its TLS handshake before it apart.
        max_connections: at once; more are closed as they come.
        access: who may ask at all.
    """

    serve: Literal["auto", "proved"] = "auto"
    decide_deadline: float = 10.0
    header_deadline: float = 15.0
    range_deadline: float = 25.0
    stall: float = 20.0
    client_stall: float = 300.0
    refuse: float = 30.0
    stop: float = 10.0
    head: float = 30.0
    max_connections: int = 1024
    access: Access = field(default_factory=Access)
