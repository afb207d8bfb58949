"""CBOR (RFC 8949), as much of it as a COSE_Sign1 message of notation needs, and nothing that it must not have.

Read: whole numbers, byte and text strings, arrays, maps, tags, booleans, null; definite lengths and shortest forms
only. Refused: everything else (floats, indefinite lengths, other simple values), a key twice in one map, keys that
are neither numbers nor texts, deep nesting, many items, bytes after the end. Tags are kept as they are: nothing is
interpreted before a signature has been checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pdist.trust.refusal import Refused

MAX_DEPTH = 8
MAX_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag with what it stands before."""

    tag: int
    value: object


def decode(data: bytes, what: str) -> object:
    """The one value that `data` encodes: int, bytes, str, list, dict, bool, None or Tagged."""
    reader = _Reader(data, what)
    value = reader.value(MAX_DEPTH)
    if reader.at != len(data):
        raise Refused(f"{what}: {len(data) - reader.at} bytes after the end")
    return value


def byte_string(data: bytes) -> bytes:
    """`data` encoded as a byte string."""
    return _head(2, len(data)) + data


def text_string(text: str) -> bytes:
    """`text` encoded as a text string."""
    data = text.encode()
    return _head(3, len(data)) + data


def array(*encoded: bytes) -> bytes:
    """An array of values that are encoded already."""
    return _head(4, len(encoded)) + b"".join(encoded)


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for extra, size in ((24, 1), (25, 2), (26, 4)):
        if number < 1 << 8 * size:
            return bytes([major << 5 | extra]) + number.to_bytes(size, "big")
    return bytes([major << 5 | 27]) + number.to_bytes(8, "big")


class _Reader:
    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._items = 0
        self.at = 0

    def value(self, depth: int) -> object:
        self._items += 1
        if depth == 0 or self._items > MAX_ITEMS:
            raise Refused(f"{self._what}: CBOR nested too deep or of too many items")
        major, number = self._head()
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self._bytes(number)
            case 3:
                return self._text(number)
            case 4:
                return [self.value(depth - 1) for _ in range(self._count(number))]
            case 5:
                return self._map(number, depth)
            case 6:
                return Tagged(number, self.value(depth - 1))
            case _:
                return self._simple(number)

    def _head(self) -> tuple[int, int]:
        first = self._bytes(1)[0]
        major, short = first >> 5, first & 31
        if short < 24:
            return major, short
        if short > 27 or major == 7:
            raise Refused(f"{self._what}: CBOR of a kind that isn't taken (float, indefinite length)")
        size = 1 << short - 24
        number = int.from_bytes(self._bytes(size), "big")
        if number < 24 or (size > 1 and number < 1 << 4 * size):
            raise Refused(f"{self._what}: CBOR number not in its shortest form")
        return major, number

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self.at:
            raise Refused(f"{self._what}: CBOR ends too early")
        self.at += count
        return self._data[self.at - count : self.at]

    def _text(self, count: int) -> str:
        try:
            return self._bytes(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"{self._what}: CBOR text that isn't UTF-8") from error

    def _count(self, number: int) -> int:
        # Each item takes at least a byte, so a huge count can be refused before anything is made.
        if number > len(self._data) - self.at:
            raise Refused(f"{self._what}: CBOR ends too early")
        return number

    def _map(self, number: int, depth: int) -> dict[int | str, object]:
        result: dict[int | str, object] = {}
        for _ in range(self._count(number)):
            key = self.value(1)
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise Refused(f"{self._what}: CBOR map with a key that is neither a number nor text")
            if key in result:
                raise Refused(f"{self._what}: CBOR map with a key twice")
            result[key] = self.value(depth - 1)
        return result

    def _simple(self, number: int) -> object:
        if number in (20, 21):
            return number == 21
        if number == 22:
            return None
        raise Refused(f"{self._what}: CBOR simple value {number}")
