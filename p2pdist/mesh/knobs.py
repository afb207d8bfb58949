"""The constants of the mesh. Where each was measured: the design page on the swarm, and docs/adr."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Knobs:
    """Counts, and times in seconds."""

    uploads: int = 8  # transfers sent at once: fills the uplink with slow receivers (4: 1.15)
    requests: int = 12  # requests out per node: 1.5 uploads, never idle, little waiting
    per_neighbour: int = 2  # requests out per neighbour
    waiting: int = 3  # requests that wait for a slot before the last in rank is answered 503: hides a round trip
    degree: int = 20  # neighbours wished for (5: 1.28, 12: 1.09, 99: 1.21)
    few: int = 5  # fewer neighbours than this: ask the tracker for more
    stall: float = 3.0  # a transfer without a byte for so long is given up, its peer dropped
    hold_min: float = 0.02  # a busy neighbour is left alone for a fraction of a chunk time, at least ...
    hold_max: float = 0.25  # ... and at most
    miss_after: float = 1.0  # nothing came for so long and no neighbour has it: ask the tracker
    end_game: int = 64  # the last 1/64 of the chunks may be asked of a second neighbour
    alone_after: float = 0.3  # without a tracker for so long: own reads from upstream, claimed first
    alone_reads: int = 24  # of them at once over all nodes, though every node has one, and none more than two
    owners: float = 0.3  # of a chunk that are expected at first, over all nodes (1: egress 1.07 instead of 1.04)
    tick: float = 0.1
    alive: float = 0.5  # a link on which nothing was said for so long says that it lives
    silent: float = 2.0  # a neighbour that says nothing for so long is dead to us
    idle: float = 60.0  # a link that nobody used for so long is closed
    first_request: float = 10.0  # a connection on which no request has come for so long is closed
    untaken: float = 30.0  # ... and one whose other side takes less than 256 KiB in that time
    grace: float = 60.0  # a link goes on for so long after the neighbour's last certificate has ended
