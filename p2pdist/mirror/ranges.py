"""Range requests (RFC 9110 section 14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*", re.IGNORECASE)
_MANY_DIGITS = 18  # more than any blob needs, and int() of thousands of digits is slow or refused


@dataclass(frozen=True, slots=True)
class Whole:
    """No range, or one that may be ignored: the whole representation, status 200."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to before `end`, at least one: status 206."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """A valid range with nothing in it: status 416."""


def parse_range(header: str | None, size: int) -> Whole | Part | Unsatisfiable:
    """What a Range header asks for of `size` bytes.

    Ignored, as RFC 9110 section 14.2 allows: other units, several ranges, what follows no grammar.
    """
    if header is None:
        return Whole()
    match = _ONE_RANGE.fullmatch(header)
    if match is None:
        return Whole()
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(_number(suffix), size)
        return Part(size - length, size) if length else Unsatisfiable()
    start = _number(first)
    end = _number(last) + 1 if last else size
    if last and end <= start:
        return Whole()
    if start >= size:
        return Unsatisfiable()
    return Part(start, min(end, size))


def _number(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= _MANY_DIGITS else 10**_MANY_DIGITS
