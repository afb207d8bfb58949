"""Text encodings, read strictly: one text has one meaning, and no decoder here eats junk.

Each function raises Refused and names what it read by `what`.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime

from p2pdist.trust.refusal import Refused, shown

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)")
_PEM = re.compile(
    rb"\s*-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n([A-Za-z0-9+/=\r\n]+?)\r?\n?-----END ([A-Z0-9 ]{1,40})-----\s*"
)


def base64_bytes(text: str, what: str) -> bytes:
    """RFC 4648 section 4 with padding, in its one canonical form."""
    try:
        raw = text.encode("ascii")
        data = base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{what} is not base64") from error
    if base64.b64encode(data) != raw:  # Python's decoder lets padding without end through
        raise Refused(f"{what} is not canonical base64")
    return data


def base64url_bytes(text: str, what: str) -> bytes:
    """RFC 4648 section 5 without padding (RFC 7515 section 2), in its one canonical form."""
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise Refused(f"{what} is not base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") != text:
        raise Refused(f"{what} is not canonical base64url")
    return data


def hex_bytes(text: str, what: str) -> bytes:
    """Lower-case hexadecimal digits."""
    if re.fullmatch(r"(?:[0-9a-f]{2})*", text) is None:
        raise Refused(f"{what} is not lower-case hexadecimal")
    return bytes.fromhex(text)


def pem_block(data: bytes, labels: tuple[str, ...], what: str) -> bytes:
    """The DER bytes of exactly one PEM block with one of `labels`, nothing before or after it."""
    match = _PEM.fullmatch(data)
    if match is None or match[1] != match[3]:
        raise Refused(f"{what} is not exactly one PEM block")
    label = match[1].decode("ascii")
    if label not in labels:
        raise Refused(f"{what} is a PEM block of {label}, wanted {' or '.join(labels)}")
    return base64_bytes(re.sub(rb"[\r\n]", b"", match[2]).decode("ascii"), what)


def time_rfc3339(text: str, what: str) -> datetime:
    """An RFC 3339 time, in UTC."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise Refused(f"{what} is not an RFC 3339 time: {shown(text)}")
    day, clock, fraction, zone = match.groups()
    micro = ("." + fraction[:6].ljust(6, "0")) if fraction else ""
    offset = "+00:00" if zone in "Zz" else zone
    try:
        return datetime.fromisoformat(f"{day}T{clock}{micro}{offset}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{what} is not a time: {shown(text)}") from error


def time_unix(seconds: int, what: str) -> datetime:
    """Seconds since 1970 as a UTC time."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise Refused(f"{what} is not a time: {shown(str(seconds)[:40])}") from error
