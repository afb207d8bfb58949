"""Names of images: repository, tag, reference, with Docker Hub's defaults. Grammar of CNCF distribution."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from p2pdist.errors import InvalidDigest, InvalidReference
from p2pdist.oci.digest import Digest

DOCKER_HUB = "docker.io"
_HUB_ALIASES = {"docker.io", "index.docker.io"}
MAX_NAME = 255  # distribution's limit for a repository name; the same is taken for the registry

_HOST_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY = re.compile(
    rf"(?:(?P<host>{_HOST_LABEL}(?:\.{_HOST_LABEL})*)|\[(?P<ip6>[0-9a-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_HEX = re.compile(r"[0-9a-f]{64}")


def valid_tag(text: str) -> bool:
    """Whether `text` may be a tag (distribution-spec, "Pulling manifests")."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A repository of a registry: `docker.io` and `library/alpine`.

    The registry is a host name or address in lower case, with a port where it has one. Neither part can hold
    `..`, `//`, `%`, white space or anything else that means something in a path or URL.

    Raises:
        InvalidReference: a part doesn't follow the grammar.
    """

    registry: str
    name: str

    def __post_init__(self) -> None:
        if not valid_registry(self.registry):
            raise InvalidReference(
                f"{_shown(self.registry)} is not a registry: a lower-case host name or address, with a port if need be"
            )
        if len(self.name) > MAX_NAME or _NAME.fullmatch(self.name) is None:
            raise InvalidReference(
                f"{_shown(self.name)} is not a repository name: lower-case letters, digits and single separators"
                f" (. _ __ -) in components between slashes, at most {MAX_NAME} characters"
            )

    @classmethod
    def parse(cls, text: str) -> Repository:
        """The repository that `text` names, with Docker Hub's defaults: `alpine` is `docker.io/library/alpine`."""
        first, slash, rest = text.partition("/")
        if not slash or not _is_registry(first):
            first, rest = DOCKER_HUB, text
            if _BARE_HEX.fullmatch(text):
                raise InvalidReference(f"{_shown(text)} is an image id, not a repository name")
        registry = first.lower()
        if registry in _HUB_ALIASES:
            registry = DOCKER_HUB
            if "/" not in rest:
                rest = f"library/{rest}"
        return cls(registry, rest)

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a pull names: a repository with a tag, a digest, or both (then the digest decides).

    Raises:
        InvalidReference: neither tag nor digest, or a tag that doesn't follow the grammar.
    """

    repository: Repository
    tag: str | None
    digest: Digest | None

    def __post_init__(self) -> None:
        if self.tag is None and self.digest is None:
            raise InvalidReference(f"{self.repository} has neither a tag nor a digest")
        if self.tag is not None and not valid_tag(self.tag):
            raise InvalidReference(
                f"{_shown(self.tag)} is not a tag: letters, digits, _ . - with no . or - in front, at most 128"
            )

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that `text` writes; `latest` where it has neither tag nor digest.

        Raises:
            InvalidReference: also for a digest that isn't one.
        """
        rest, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except InvalidDigest as error:
                raise InvalidReference(f"{_shown(text)}: {error}") from error
        # A colon after the last slash starts a tag; before it, a registry's port.
        colon = rest.find(":", rest.rfind("/") + 1)
        tag = None if colon < 0 else rest[colon + 1 :]
        name = rest if colon < 0 else rest[:colon]
        if tag is None and digest is None:
            tag = "latest"
        return cls(Repository.parse(name), tag, digest)

    @property
    def target(self) -> str:
        """What goes into `/v2/NAME/manifests/<target>`: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest is not None else str(self.tag)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"


def valid_registry(text: str) -> bool:
    """Whether `text` is a registry's name as `Repository` wants it: lower-case host or address, port 1 to 65535."""
    match = _REGISTRY.fullmatch(text)
    if match is None or len(text) > MAX_NAME:
        return False
    if match["ip6"] is not None:
        try:
            ipaddress.IPv6Address(match["ip6"])
        except ValueError:
            return False
    return match["port"] is None or 0 < int(match["port"]) <= 65535


def _is_registry(component: str) -> bool:
    return any(c in component for c in ".:[") or component == "localhost"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
