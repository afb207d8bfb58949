"""What can be set about pulling."""

from __future__ import annotations

from dataclasses import dataclass

PAUSE = 3.0  # seconds that a small read waits when the upstream asks for it (429)


@dataclass(frozen=True, slots=True)
class PullSettings:
    """Times in seconds."""

    ask_seconds: float = 8.0  # for the tracker's answer; it includes another node's read from upstream
    tag_seconds: float = 10.0  # with no tracker, a tag is asked for upstream at most this often
