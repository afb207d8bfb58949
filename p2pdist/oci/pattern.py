"""Sets of images by name or digest, as deny lists, keep lists and webhook rules write them. Pure.

    sha256:...                    whatever has this digest, in every repository
    ghcr.io/acme/app:1.2          one tag
    ghcr.io/acme/app@sha256:...   one digest in one repository
    ghcr.io/acme/app              every tag of a repository
    ghcr.io/acme/*:release-*      `*` (also across slashes), `?` and `[...]`; without a tag: every tag

Docker Hub's defaults hold: `nginx` is `docker.io/library/nginx`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import translate

from p2pdist.errors import InvalidDigest, InvalidReference
from p2pdist.oci.digest import Digest
from p2pdist.oci.reference import DOCKER_HUB, Repository, valid_tag

_WILD = re.compile(r"[*?\[]")
_ALLOWED = re.compile(r"[A-Za-z0-9_./:*?!\[\]-]{1,512}")
_Matcher = re.Pattern[str]


@dataclass(frozen=True, slots=True)
class ImagePattern:
    """Made by `parse`. `text` is how it is written out; two patterns are equal when their texts are."""

    text: str
    digest: Digest | None = field(compare=False)
    repository: str | None = field(compare=False)  # exact; None: any, or by pattern
    tag: str | None = field(compare=False)  # exact; None: any, or by pattern
    _repository: _Matcher | None = field(compare=False, repr=False)
    _tag: _Matcher | None = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> ImagePattern:
        """The set that `text` writes. InvalidReference; the message does not repeat what may hold a password."""
        if text.startswith(("sha256:", "sha512:")):
            everywhere = _digest(text)
            return cls(str(everywhere), everywhere, None, None, None, None)
        name, at, digest_text = text.partition("@")
        digest = _digest(digest_text) if at else None
        if not _ALLOWED.fullmatch(name) or (at and _WILD.search(name)):
            raise InvalidReference(
                "wanted an image like ghcr.io/acme/app:1, a repository, a digest, or a pattern like ghcr.io/acme/*:1.*"
            )
        colon = name.find(":", name.rfind("/") + 1)
        tag = None if colon < 0 else name[colon + 1 :]
        name = name if colon < 0 else name[:colon]
        wild_name, wild_tag = bool(_WILD.search(name)), tag is not None and bool(_WILD.search(tag))
        name = _defaults(name) if wild_name else str(Repository.parse(name))
        if tag is not None and not wild_tag and not valid_tag(tag):
            raise InvalidReference(f"not a tag: {tag[:80]!r}")
        if digest is not None:
            return cls(f"{name}@{digest}", digest, name, None, None, None)
        return cls(
            name if tag is None else f"{name}:{tag}",
            None,
            None if wild_name else name,
            None if wild_tag else tag,
            re.compile(translate(name)) if wild_name else None,
            re.compile(translate(tag)) if wild_tag and tag is not None else None,
        )

    @property
    def whole(self) -> bool:
        """Whether it says nothing of tags: with a repository, all that is in it."""
        return self.tag is None and self._tag is None

    def of(self, repository: str) -> bool:
        """Whether a repository (`docker.io/library/nginx`) is one of those it speaks of."""
        if self._repository is not None:
            return self._repository.fullmatch(repository) is not None
        return self.repository in (None, repository)

    def matches(self, repository: str, tag: str | None, digest: Digest | None) -> bool:
        """Whether the image is in the set: what it is called, and its digest, as far as they are known."""
        if not self.of(repository):
            return False
        if self.digest is not None:
            return digest == self.digest
        if self.whole:
            return True
        return tag is not None and (self._tag.fullmatch(tag) is not None if self._tag is not None else tag == self.tag)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest:
        raise InvalidReference("wanted a digest like sha256: and 64 hex digits") from None


def _defaults(name: str) -> str:
    """Docker Hub's, for a pattern: its first part names a registry if it could, or if it is one itself."""
    first, slash, _ = name.partition("/")
    if name == "*" or (slash and (any(c in first for c in ".:*?[") or first == "localhost")):
        return name
    return f"{DOCKER_HUB}/{name}" if slash else f"{DOCKER_HUB}/library/{name}"
