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
