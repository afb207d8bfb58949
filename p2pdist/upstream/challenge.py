"""The `WWW-Authenticate` and `Retry-After` headers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MAX_HEADER = 8 * 1024
MAX_RETRY_AFTER = 3600.0  # seconds; a registry that asks for more is asked again after an hour

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:[ \t]+|$|(?=,))")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))[ \t]*(?=,|$)', re.DOTALL)
_ERROR = re.compile(r"[a-z_]{1,40}")  # RFC 6750 section 3.1
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme in lower case, and its parameters with names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def shown_challenge(challenge: Challenge, scope: str) -> str:
    """A Bearer challenge that a client can answer with a token of its own for `scope`; empty if it makes none.

    Put together from its parameters: nothing else that an upstream writes reaches a client's headers.
    """
    fields = {name: challenge.parameters.get(name, "") for name in ("realm", "service")}
    fields["scope"] = scope
    if _ERROR.fullmatch(challenge.parameters.get("error", "")):  # containerd ends its tries by it
        fields["error"] = challenge.parameters["error"]
    if challenge.scheme != "bearer" or not fields["realm"]:
        return ""
    if not all(value.isascii() and value.isprintable() and len(value) <= 2048 for value in fields.values()):
        return ""
    quoted = {name: value.replace("\\", r"\\").replace('"', r"\"") for name, value in fields.items() if value}
    return "Bearer " + ",".join(f'{name}="{value}"' for name, value in quoted.items())


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all `WWW-Authenticate` headers of one answer (RFC 9110 section 11.6.1), in order.

    What follows something unreadable in a header is left out; no text raises.
    """
    return [challenge for header in headers for challenge in _of_header(header[:MAX_HEADER])]


def _of_header(header: str) -> list[Challenge]:
    found = []
    at = 0
    while (scheme := _SCHEME.match(header, at)) is not None:
        at = scheme.end()
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(header, at)) is not None:
            at = parameter.end()
            quoted, token = parameter[2], parameter[3]
            value = _ESCAPE.sub(r"\1", quoted) if quoted is not None else token
            parameters.setdefault(parameter[1].lower(), value)
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header (RFC 9110 section 10.2.3): a number or a date.

    `now` is Unix time in seconds. None: no header, or an unreadable one. At most `MAX_RETRY_AFTER`.
    """
    if text is None or len(text) > 64:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(when - now, 0.0), MAX_RETRY_AFTER)
