"""What can be set about pulling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAUSE = 3.0  # seconds that a small read waits when the upstream asks for it (429)


@dataclass(frozen=True, slots=True)
class PullSettings:
    """Times in seconds. `rights_file`: where what the upstream accepted is kept over a restart."""

    ask_seconds: float = 8.0  # for the tracker's answer; it includes another node's read from upstream
    tag_seconds: float = 10.0  # with no tracker, a tag is asked for upstream at most this often
    rights_seconds: float = 300.0  # an upstream's word on who may read a repository holds for so long
    rights_outage_seconds: float = 86_400.0  # ... and for so long while it can't be reached
    rights_unreachable: str = "known"  # or "serve": then to everybody, for clusters that have no upstream
    rights_ask_seconds: float = 2.0  # for the tracker's answer, before this node asks itself
    rights_file: Path | None = None
