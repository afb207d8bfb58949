"""A request, parsed once: what is asked of which repository of which registry, or why it can't be. Pure.

Which registry (design page "clients", section 5.2): `?ns=`, else our own header, else a first path component that
can only be a host, else Docker Hub. Every path component is percent-decoded once and must then follow the grammar of
repository names, tags or digests, in which neither `..` nor `%` nor a slash can be written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from p2pdist.errors import InputError, InvalidDigest, InvalidReference
from p2pdist.oci import Digest, Repository, valid_tag

REGISTRY_HEADER = "X-P2pdist-Registry"
MAX_QUERY_FIELDS = 16

_HUB = "docker.io"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_WITH_PORT = re.compile(r"(.+)__([0-9]{1,5})")
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ping:
    """`/v2/`: is this a registry?"""


@dataclass(frozen=True, slots=True)
class ManifestAsked:
    """`target` is a valid tag, or a digest's text; then `digest` is that digest."""

    repository: Repository
    target: str
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class BlobAsked:
    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True)
class ReferrersAsked:
    repository: Repository
    digest: Digest
    artifact_type: str | None


@dataclass(frozen=True, slots=True)
class TagsAsked:
    """`query` holds nothing but `n` and `last`; `link` is what a next page's address needs besides them."""

    repository: Repository
    query: str
    path: str
    ns: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer without content: status, code of distribution-spec ("Error Codes") and text for a person.

    `challenge`: the WWW-Authenticate value of a 401.
    """

    status: int
    code: str
    message: str
    challenge: str = ""


Asked = Ping | ManifestAsked | BlobAsked | ReferrersAsked | TagsAsked


def parse(method: str, target: str, registry_header: Sequence[str] = ()) -> Asked | Refusal:
    """What a request asks for. `target` is the request target as it came, `registry_header` our header's values."""
    if method not in ("GET", "HEAD"):
        return Refusal(405, "UNSUPPORTED", "this mirror is read-only: push to the registry itself")
    path, _, query = _ABSOLUTE_FORM.sub("", target, count=1).partition("?")
    if path == "/v2/":
        return Ping()
    if not path.startswith("/v2/"):
        return Refusal(404, "UNSUPPORTED", "nothing but /v2/ is served here")
    try:
        fields = _fields(query)
        components = [_decoded(component) for component in path.removeprefix("/v2/").split("/")]
        return _route(path, components, fields, registry_header)
    except InvalidDigest as error:
        return Refusal(404, "DIGEST_INVALID", str(error))
    except InputError as error:
        return Refusal(404, "NAME_INVALID", str(error))


def _route(path: str, components: list[str], fields: dict[str, str], registry_header: Sequence[str]) -> Asked | Refusal:
    # Read from the end: `manifests` and `blobs` are also legal components of a name.
    match components:
        case [*name, "manifests", target] if name:
            repository = _repository(name, fields, registry_header)
            if ":" in target:
                digest = Digest.parse(target)
                return ManifestAsked(repository, str(digest), digest)
            if not valid_tag(target):
                raise InvalidReference(f"{target[:128]!r} is neither a tag nor a digest")
            return ManifestAsked(repository, target, None)
        case [*name, "blobs", digest_text] if name:
            return BlobAsked(_repository(name, fields, registry_header), Digest.parse(digest_text))
        case [*name, "referrers", digest_text] if name:
            repository = _repository(name, fields, registry_header)
            return ReferrersAsked(repository, Digest.parse(digest_text), fields.get("artifactType") or None)
        case [*name, "tags", "list"] if name:
            repository = _repository(name, fields, registry_header)
            wanted = urlencode([(key, fields[key]) for key in ("n", "last") if key in fields])
            return TagsAsked(repository, wanted, path, fields.get("ns"))
        case _:
            return Refusal(404, "UNSUPPORTED", "manifests, blobs, referrers and tag lists are served here")


def _repository(name: list[str], fields: dict[str, str], registry_header: Sequence[str]) -> Repository:
    named = fields.get("ns")
    if named is None and registry_header:
        if len(set(registry_header)) > 1:
            raise InvalidReference(f"{REGISTRY_HEADER} names more than one registry")
        named = registry_header[0].strip()
    if named is not None:
        if "@" in named:
            raise InvalidReference("a registry is named without a user")  # and the name, which may be a login, not said
        registry = named.lower()
    else:
        registry, name = _from_path(name)
    if registry in _HUB_NAMES:
        registry = _HUB
        if len(name) == 1:
            name = ["library", *name]
    return Repository(registry, "/".join(name))


def _from_path(name: list[str]) -> tuple[str, list[str]]:
    # The form that podman's location="127.0.0.1:5050/ghcr.io" makes. No client accepts a port there, in any
    # spelling but host__5000.
    first, rest = name[0], name[1:]
    if port := _WITH_PORT.fullmatch(first):
        return f"{port[1]}:{port[2]}", rest
    if "." in first or first == "localhost":
        return first, rest
    return _HUB, name


def _fields(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
    except ValueError as error:  # also what isn't UTF-8
        raise InvalidReference("the query string can't be read") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidReference("the query string has a field twice")
    return fields


def _decoded(component: str) -> str:
    try:
        decoded = unquote_to_bytes(component).decode("ascii")
    except UnicodeError as error:
        raise InvalidReference("a path component is not ASCII") from error
    if "/" in decoded:
        raise InvalidReference("a path component has an encoded slash")
    return decoded
