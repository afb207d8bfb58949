"""Times as operators write them: 30m, 24h, 7d. Pure."""

from __future__ import annotations

import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_in(text: str) -> int | None:
    """Seconds; None if it isn't such a time."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    return None if match is None else int(match[1]) * _UNITS[match[2]]
