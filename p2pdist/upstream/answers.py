"""What a registry's answers mean: the error that a status stands for, and the answers that callers get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from p2pdist.errors import UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamThrottled
from p2pdist.oci import Digest
from p2pdist.upstream.challenge import parse_retry_after
from p2pdist.upstream.transport import read_some, shown

_ERROR_BODY = 8 * 1024


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """What a HEAD of a manifest says. None where the registry doesn't say it; `media_type` may be empty."""

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest's bytes as they came; `digest` is computed from them. `media_type` may be empty."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer to be passed on: `headers` holds `Link` and `OCI-Filters-Applied` where they came."""

    status: int
    media_type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str]


async def error_of(
    response: aiohttp.ClientResponse, what: str, now: float, *, elsewhere: bool = False
) -> UpstreamError:
    """The error that an answer stands for, with what the registry says about it (distribution-spec, "Error Codes").

    Closes the answer. `now` is Unix time. `elsewhere`: it comes from where the registry redirected to, so that
    a refusal says that the redirect has expired, not that the registry denies us.
    """
    said = _said(await read_some(response, _ERROR_BODY))
    status = response.status
    where = f" at {shown(response.url.origin())}" if elsewhere else ""
    text = f"{what}: {status}{where}{said}"
    if status == 404:
        return UpstreamNotFound(text, status=status)
    if status in (401, 403):
        return UpstreamError(text, status=status) if elsewhere else UpstreamDenied(text, status=status)
    wait = parse_retry_after(response.headers.get("Retry-After"), now)
    if status == 429 or (status == 503 and wait is not None):
        return UpstreamThrottled(text, status=status, retry_after=wait)
    if (status >= 500 and status != 501) or status == 408:
        return UpstreamError(text, status=status)
    return UpstreamInvalid(f"{text}: not an answer to what was asked", status=status)


def _said(body: bytes) -> str:
    """The first error's code and message, printable and short; empty if the body says nothing of the kind."""
    try:
        first = json.loads(body)["errors"][0]
        code, message = str(first.get("code", "")), str(first.get("message", ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    text = "".join(c for c in f"{code}: {message}" if c.isprintable())[:200]
    return f" ({text})"
