"""The little of DER (ITU-T X.690) that `cryptography` has no reader for: a UTF8String in a Fulcio extension."""

from __future__ import annotations

from p2pdist.trust.refusal import Refused

_UTF8_STRING = 0x0C
MAX_LENGTH = 4096


def utf8_string(data: bytes, what: str) -> str:
    """The text of exactly one DER UTF8String with nothing after it."""
    if len(data) < 2 or data[0] != _UTF8_STRING:
        raise Refused(f"{what} is not a DER UTF8String")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 2 or len(data) < 2 + count:
            raise Refused(f"{what} has a DER length that isn't taken")
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
        if length < 0x80 or (count == 2 and length < 0x100):
            raise Refused(f"{what} has a DER length that isn't minimal")
    if length > MAX_LENGTH or len(data) != start + length:
        raise Refused(f"{what} has a wrong DER length")
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{what} is not UTF-8") from error
