"""Bencoding (BEP 3): what torrents and announce answers are made of. Pure; strict when it reads."""

from __future__ import annotations

from typing import Any, TypeAlias

from p2pdist.errors import InputError

Bencodable: TypeAlias = "int | bytes | list[Any] | dict[bytes, Any]"

_DEPTH = 16  # nesting of what is read; a torrent needs 5


def encode(value: Bencodable) -> bytes:
    """The one canonical form: dictionary keys sorted as raw bytes."""
    out: list[bytes] = []
    _encode(value, out)
    return b"".join(out)


def _encode(value: Bencodable, out: list[bytes]) -> None:
    if isinstance(value, bytes):
        out += (b"%d:" % len(value), value)
    elif isinstance(value, int):
        out.append(b"i%de" % value)
    elif isinstance(value, list):
        out.append(b"l")
        for item in value:
            _encode(item, out)
        out.append(b"e")
    else:
        out.append(b"d")
        for key in sorted(value):
            _encode(key, out)
            _encode(value[key], out)
        out.append(b"e")


def decode(data: bytes) -> Bencodable:
    """The value that `data` is, all of it. InputError if it is not canonical bencoding, or nested too deeply."""
    value, end = _decode(data, 0, _DEPTH)
    if end != len(data):
        raise InputError(f"{len(data) - end} bytes after the end of the bencoded value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Bencodable, int]:
    if depth == 0:
        raise InputError("bencoding that is nested too deeply")
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.find(b"e", at, at + 24)
        return _number(data[at + 1 : end] if end > 0 else b""), end + 1
    if kind == b"l":
        at += 1
        items: list[Any] = []
        while data[at : at + 1] != b"e":
            item, at = _decode(data, at, depth - 1)
            items.append(item)
        return items, at + 1
    if kind == b"d":
        return _dictionary(data, at + 1, depth)
    return _text(data, at)


def _dictionary(data: bytes, at: int, depth: int) -> tuple[Bencodable, int]:
    entries: dict[bytes, Any] = {}
    last: bytes | None = None
    while data[at : at + 1] != b"e":
        key, at = _text(data, at)
        if last is not None and key <= last:
            raise InputError("a bencoded dictionary whose keys are not in order")
        entries[key], at = _decode(data, at, depth - 1)
        last = key
    return entries, at + 1


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    colon = data.find(b":", at, at + 12)
    if colon < 0:
        raise InputError(f"not bencoding at byte {at}")
    length = _number(data[at:colon])
    start, end = colon + 1, colon + 1 + length
    if length < 0 or end > len(data):
        raise InputError(f"a bencoded text of {length} bytes where {len(data) - start} are left")
    return data[start:end], end


def _number(text: bytes) -> int:
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or (digits[:1] == b"0" and text != b"0"):
        raise InputError(f"not a bencoded number: {text[:24]!r}")
    return int(text)
