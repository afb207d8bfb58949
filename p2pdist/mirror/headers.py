"""Request and response headers that need reading or writing. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from p2pdist.errors import UpstreamInvalid
from p2pdist.mirror.answers import etag
from p2pdist.mirror.door import TagsAsked
from p2pdist.oci import Digest

_ZERO = re.compile(r"0(\.0{0,3})?")
_NEXT = re.compile(r"<([^<>]*)>\s*;\s*rel=\"?next\"?")


def accepts(lines: Sequence[str], media_type: str) -> bool:
    """Whether Accept lines admit `media_type` (RFC 9110 section 12.5.1). Docker sends six lines in random order.

    What isn't accepted is not converted here, but left to the upstream: docker-registry does the same.
    """
    wanted = media_type.partition(";")[0].strip().lower()
    admitted = {wanted, wanted.partition("/")[0] + "/*", "*/*"}
    entries = [entry for line in lines for entry in line.split(",") if entry.strip()]
    for entry in entries:
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        refused = any(key == "q" and _ZERO.fullmatch(value) for key, _, value in (p.partition("=") for p in parameters))
        if name in admitted and not refused:
            return True
    return not entries


def matches(lines: Sequence[str], digest: Digest) -> bool:
    """Whether If-None-Match lines name what `digest` names (RFC 9110 section 13.1.2, weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")]
    return "*" in tags or etag(digest) in tags


def next_page(link: str, asked: TagsAsked) -> str:
    """The upstream's Link to the next page of tags, leading here instead (distribution-spec, "Listing Tags").

    Raises:
        UpstreamInvalid: it can't be understood. Passing the page on without it would hide tags.
    """
    match = _NEXT.search(link)
    if match is None:
        raise UpstreamInvalid("the upstream's Link to more tags can't be read")
    fields = dict(parse_qsl(match[1].partition("?")[2]))
    wanted = [(key, fields[key]) for key in ("n", "last") if key in fields]
    if asked.ns is not None:
        wanted.append(("ns", asked.ns))
    return f'<{asked.path}?{urlencode(wanted)}>; rel="next"'
