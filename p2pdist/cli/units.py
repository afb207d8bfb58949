"""Quantities as people read them."""

from __future__ import annotations


def in_bytes(size: int) -> str:
    """`64.0 MiB`: always one decimal, so that columns of them can be compared at a glance."""
    if size < 1024:
        return f"{size} B"
    amount, unit = float(size), "B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007  the last one reached is wanted
        amount /= 1024
        if amount < 1024:
            break
    return f"{amount:.1f} {unit}"


def in_time(seconds: float) -> str:
    """`3.2 s`, `23 h 59 min`, `6 d 2 h`: the two largest units."""
    if abs(seconds) < 120:
        return f"{seconds:.1f} s"
    minutes = round(abs(seconds) / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    sign = "-" if seconds < 0 else ""
    if days:
        return f"{sign}{days} d {hours} h"
    return f"{sign}{hours} h {minutes % 60} min" if hours else f"{sign}{minutes} min"
