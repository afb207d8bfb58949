"""What can be set about swarms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """Times in seconds."""

    join_seconds: float = 1.0  # a tracker that has not answered a Join by then is done without
    stuck_seconds: float = 10.0  # no progress of a rollout for so long: own reads from upstream
    linger_seconds: float = 300.0  # a rollout that no client waits for goes on for so long
    streams: int = 3  # streams of whole blobs at once with no tracker
    live_seeds: int = 256  # stored blobs that are open for peers at once
