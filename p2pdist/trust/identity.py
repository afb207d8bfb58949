"""Which image a signature speaks of: its docker-reference against the policy's `signedIdentity`. Pure.

containers-policy.json(5), "signedBy". Prefixes are compared by whole components of the expanded form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pdist.errors import ConfigError, InvalidDigest, InvalidReference
from p2pdist.oci import Digest, Repository, valid_registry, valid_tag
from p2pdist.trust.fields import Fields


@dataclass(frozen=True, slots=True)
class Name:
    """A repository with a tag, a digest, both or (unlike a Reference) neither."""

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """What `text` writes, Docker Hub's defaults applied, no tag added.

        Raises:
            InvalidReference: not a name by the grammar.
        """
        rest, at, digest_text = text.partition("@")
        try:
            digest = Digest.parse(digest_text) if at else None
        except InvalidDigest as error:
            raise InvalidReference(str(error)) from error
        colon = rest.find(":", rest.rfind("/") + 1)
        tag = None if colon < 0 else rest[colon + 1 :]
        if tag is not None and not valid_tag(tag):
            raise InvalidReference(f"{tag[:80]!r} is not a tag")
        return cls(Repository.parse(rest if colon < 0 else rest[:colon]), tag, digest)

    @classmethod
    def of_target(cls, repository: Repository, target: str) -> Name:
        """What a pull of `target`, a tag or a digest's text, names."""
        return cls(repository, None, Digest.parse(target)) if ":" in target else cls(repository, target, None)

    @property
    def bare(self) -> bool:
        """Whether it has neither a tag nor a digest."""
        return self.tag is None and self.digest is None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class MatchExact:
    """The signature names exactly what was pulled; a pull by digest never matches a tag."""

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        return not pulled.bare and pulled == signed

    def __str__(self) -> str:
        return "matchExact"


@dataclass(frozen=True, slots=True)
class MatchRepoDigestOrExact:
    """Pulled by tag: the same tag. By digest: the same repository, any tag. The signature must have a tag or digest."""

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        if signed.bare or pulled.bare:
            return False
        return pulled == signed if pulled.tag is not None else pulled.repository == signed.repository

    def __str__(self) -> str:
        return "matchRepoDigestOrExact"


@dataclass(frozen=True, slots=True)
class MatchRepository:
    """The same repository; tags are not looked at, so a signed image can be put under another tag."""

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        return pulled.repository == signed.repository

    def __str__(self) -> str:
        return "matchRepository"


@dataclass(frozen=True, slots=True)
class ExactReference:
    """One given name with its tag or digest, whatever was pulled."""

    name: Name

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        return not signed.bare and signed == self.name

    def __str__(self) -> str:
        return f"exactReference {self.name}"


@dataclass(frozen=True, slots=True)
class ExactRepository:
    """One given repository, whatever was pulled."""

    repository: Repository

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        return signed.repository == self.repository

    def __str__(self) -> str:
        return f"exactRepository {self.repository}"


@dataclass(frozen=True, slots=True)
class RemapIdentity:
    """MatchRepoDigestOrExact after `prefix` of the pulled name is replaced by `signed_prefix` (else unchanged)."""

    prefix: str
    signed_prefix: str

    def accepts(self, pulled: Name, signed: Name) -> bool:
        """Whether a signature for `signed` counts for `pulled`."""
        full = str(pulled.repository)
        if full == self.prefix or full.startswith(self.prefix + "/"):
            remapped = self.signed_prefix + full[len(self.prefix) :]
            try:
                repository = Repository.parse(remapped)
            except InvalidReference:
                return False
            if str(repository) != remapped:  # a signed prefix that isn't in the expanded form
                return False
            pulled = Name(repository, pulled.tag, pulled.digest)
        return MatchRepoDigestOrExact().accepts(pulled, signed)

    def __str__(self) -> str:
        return f"remapIdentity {self.prefix} -> {self.signed_prefix}"


SignedIdentity = (
    MatchExact | MatchRepoDigestOrExact | MatchRepository | ExactReference | ExactRepository | RemapIdentity
)

_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")


def valid_prefix(text: str) -> bool:
    """Whether `text` is a registry, or a registry with a namespace or repository, in the expanded form."""
    registry, slash, path = text.partition("/")
    return valid_registry(registry) and (not slash or _PATH.fullmatch(path) is not None)


def parse_signed_identity(fields: Fields | None) -> SignedIdentity:
    """The `signedIdentity` object of a requirement; None: the default, matchRepoDigestOrExact.

    Raises:
        ConfigError: an unknown type or key, or a name that can't be one.
    """
    if fields is None:
        return MatchRepoDigestOrExact()
    name = fields.text("type")
    identity = _parse(name, fields)
    fields.only_asked()
    return identity


def _parse(name: str, fields: Fields) -> SignedIdentity:
    match name:
        case "matchExact":
            return MatchExact()
        case "matchRepoDigestOrExact":
            return MatchRepoDigestOrExact()
        case "matchRepository":
            return MatchRepository()
        case "exactReference":
            reference = _name(fields, "dockerReference")
            if reference.bare:
                fields.fail("dockerReference must have a tag or a digest")
            return ExactReference(reference)
        case "exactRepository":
            repository = _name(fields, "dockerRepository")
            if not repository.bare:
                fields.fail("dockerRepository must have neither a tag nor a digest")
            return ExactRepository(repository.repository)
        case "remapIdentity":
            return RemapIdentity(_prefix(fields, "prefix"), _prefix(fields, "signedPrefix"))
        case _:
            fields.fail(f"unknown signedIdentity type {name[:80]!r}")


def _name(fields: Fields, key: str) -> Name:
    text = fields.text(key)
    try:
        return Name.parse(text)
    except InvalidReference as error:
        raise ConfigError(f"{fields.where}.{key}: {error}") from error


def _prefix(fields: Fields, key: str) -> str:
    text = fields.text(key)
    if not valid_prefix(text):
        fields.fail(f"{key} must be a registry, namespace or repository in full, as in docker.io/library")
    return text
