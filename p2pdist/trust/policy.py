"""The policy file: containers-policy.json(5), strictly. Bytes in, a Policy out or a ConfigError; nothing in between.

Rules:
1. A key that is unknown or there twice refuses the whole file, and so does a requirement that can't be used as it
   stands (unknown type, missing key file, wrong key).
2. For an image the most specific scope applies, alone: reference, repository, its namespaces, registry, `*.` domains,
   the transport's default, the global default.
3. Requirements of a scope must all be met. For each, one good signature suffices.

Other transports than `docker` may be there, for the tools that share the file; their scopes never apply here, so no
more than their outline is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2pdist.errors import ConfigError, InvalidReference
from p2pdist.oci import Repository
from p2pdist.trust import limits
from p2pdist.trust.evidence import Form
from p2pdist.trust.fields import Fields
from p2pdist.trust.identity import Name, valid_prefix
from p2pdist.trust.requirement_reader import Files, parse_requirement
from p2pdist.trust.requirements import AcceptAnything, Requirement

_WILDCARD = re.compile(r"\*(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+")

MAX_SCOPES = 10_000


class Enforcement(StrEnum):
    """What a refusal does: refuse, only be logged and counted, or nothing is judged at all."""

    ENFORCE = "enforce"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope of the policy with what it requires. `name`: as in the file; "default" for the global default."""

    name: str
    requirements: tuple[Requirement, ...]

    @property
    def forms(self) -> frozenset[Form]:
        """The forms of signatures that could meet its requirements."""
        return frozenset(form for requirement in self.requirements for form in requirement.forms)

    @property
    def open(self) -> bool:
        """Whether it accepts anything."""
        return all(isinstance(requirement, AcceptAnything) for requirement in self.requirements)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file, read. `scopes`: those of the docker transport; `referenced`: repositories with one for a tag."""

    default: Scope
    scopes: Mapping[str, Scope]
    referenced: frozenset[str] = frozenset()

    def scope_for(self, repository: Repository, target: str) -> Scope:
        """The scope that applies to a pull of `target`, a tag or a digest's text."""
        separator = "@" if ":" in target else ":"
        exact = self.scopes.get(f"{repository}{separator}{target}")
        return exact if exact is not None else self.scope_of(repository)

    def scope_of(self, repository: Repository) -> Scope:
        """The scope that applies to a repository, whatever is pulled from it."""
        for name in namespaces(repository):
            if name in self.scopes:
                return self.scopes[name]
        return self.default

    def open_for(self, repository: Repository) -> bool:
        """Whether anything is accepted from this repository, whatever its tag or digest."""
        return self.scope_of(repository).open and str(repository) not in self.referenced

    def names_reference(self, repository: Repository, target: str) -> bool:
        """Whether there is a scope for exactly this tag or digest."""
        return f"{repository}{'@' if ':' in target else ':'}{target}" in self.scopes


def namespaces(repository: Repository) -> list[str]:
    """The scopes that a repository is in, most specific first: itself, its parents, its registry, `*.`, all."""
    full = str(repository)
    names = [full]
    while "/" in names[-1]:
        names.append(names[-1].rpartition("/")[0])
    domain = repository.registry
    if not domain.startswith("["):  # an IPv6 address has no parent domains
        domain = domain.partition(":")[0]
        while "." in domain:
            domain = domain.partition(".")[2]
            names.append(f"*.{domain}")
    names.append("")
    return names


def parse_policy(raw: bytes, files: Files, origin: str) -> Policy:
    """The policy in `raw`, with every key and certificate that it names read through `files`.

    Raises:
        ConfigError: by the rules above; says where in the file.
    """
    fields = Fields.parse(raw, limits.POLICY_FILE, origin, ConfigError, None)
    default = Scope("default", _requirements(fields.items("default"), f"{origin}: default", files))
    scopes: dict[str, Scope] = {}
    referenced: set[str] = set()
    transports = fields.optional_object("transports")
    fields.only_asked()
    for transport in transports.names() if transports is not None else ():
        assert transports is not None
        found = transports.object(transport)
        if len(found.names()) > MAX_SCOPES:
            found.fail(f"more than {MAX_SCOPES} scopes")
        for name in found.names():
            where = f"{found.where}[{name[:200]!r}]"
            if transport == "docker":
                repository = _check_scope(found, name)
                if repository is not None:
                    referenced.add(repository)
                scopes[name] = Scope(name or "docker", _requirements(found.items(name), where, files))
            else:
                _outline(found.items(name), where)
    return Policy(default, scopes, frozenset(referenced))


def _requirements(items: list[object], where: str, files: Files) -> tuple[Requirement, ...]:
    if not items:
        raise ConfigError(f"{where}: no requirement; insecureAcceptAnything is one that accepts anything")
    return tuple(
        parse_requirement(Fields(item, f"{where}[{number}]", ConfigError), files) for number, item in enumerate(items)
    )


def _outline(items: list[object], where: str) -> None:
    if not items:
        raise ConfigError(f"{where}: no requirement")
    for number, item in enumerate(items):
        Fields(item, f"{where}[{number}]", ConfigError).text("type")


def _check_scope(fields: Fields, name: str) -> str | None:
    """The repository, where the scope is one tag or digest of it."""
    if name == "" or _WILDCARD.fullmatch(name) or valid_prefix(name):
        return None
    try:
        reference = Name.parse(name)
    except InvalidReference as error:
        raise ConfigError(f"{fields.where}: scope {name[:200]!r}: {error}") from error
    if str(reference) != name:
        fields.fail(f"scope {name[:200]!r} is not in full; {str(reference)!r} would be")
    return str(reference.repository)
