"""notation's trustpolicy.json: which statement applies to a repository, and how strictly (trust-store-trust-policy.md).

Strict as the policy file is: unknown and duplicate keys refuse it, and so do scopes given twice, identities that
overlap, and what the specification forbids to override. Certificates come with it: `Stores` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509

from p2pdist.errors import ConfigError, InvalidReference
from p2pdist.oci import Repository
from p2pdist.trust import limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.notation.names import covers, parse_name
from p2pdist.trust.refusal import Refused

_STORE_TYPES = ("ca", "signingAuthority", "tsa")
_STORE_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_SUBJECT = "x509.subject"


class Check(StrEnum):
    """What is checked of a signature."""

    INTEGRITY = "integrity"
    AUTHENTICITY = "authenticity"
    TIMESTAMP = "authenticTimestamp"
    EXPIRY = "expiry"
    REVOCATION = "revocation"


class Action(StrEnum):
    """What a failed check does."""

    ENFORCE = "enforce"
    LOG = "log"
    SKIP = "skip"


def _level(timestamp: Action, expiry: Action, revocation: Action, authenticity: Action) -> dict[Check, Action]:
    return {
        Check.INTEGRITY: Action.ENFORCE,
        Check.AUTHENTICITY: authenticity,
        Check.TIMESTAMP: timestamp,
        Check.EXPIRY: expiry,
        Check.REVOCATION: revocation,
    }


_LEVELS: dict[str, Mapping[Check, Action]] = {
    "strict": _level(Action.ENFORCE, Action.ENFORCE, Action.ENFORCE, Action.ENFORCE),
    "permissive": _level(Action.LOG, Action.LOG, Action.LOG, Action.ENFORCE),
    "audit": _level(Action.LOG, Action.LOG, Action.LOG, Action.LOG),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """How signatures of some repositories are judged.

    Attributes:
        actions: empty where verification is skipped.
        stores: certificates by store type, every store of the statement.
        identities: trusted subjects of the leaf; None: any (`*`).
        timestamps: whether the statement names a store of timestamp authorities, and when it is used.
    """

    name: str
    scopes: tuple[str, ...]
    level: str
    actions: Mapping[Check, Action]
    stores: Mapping[str, tuple[x509.Certificate, ...]]
    identities: tuple[Mapping[str, str], ...] | None
    timestamps: str | None

    @property
    def skips(self) -> bool:
        """Whether nothing at all is verified."""
        return not self.actions


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """Statements by scope; an exact repository wins over `*`."""

    statements: tuple[Statement, ...]
    origin: str

    def statement_for(self, repository: Repository) -> Statement | None:
        """The statement that applies; None when none does, and then nothing is accepted."""
        everything = None
        for statement in self.statements:
            if str(repository) in statement.scopes:
                return statement
            if "*" in statement.scopes:
                everything = statement
        return everything


Stores = Callable[[str, str], tuple[x509.Certificate, ...]]
"""Type and name of a trust store in, its certificates out; ConfigError when it can't be read."""


def parse_trust_policy(raw: bytes, origin: str, stores: Stores) -> TrustPolicy:
    """The policy in `raw`; `origin` names the file.

    Raises:
        ConfigError: anything wrong with it, or with a trust store it names.
    """
    fields = Fields.parse(raw, limits.POLICY_FILE, origin, ConfigError, None)
    if fields.text("version") != "1.0":
        fields.fail(f"version {fields.text('version')[:20]!r} is unknown; 1.0 is known")
    items = fields.items("trustPolicies")
    fields.only_asked()
    if not items:
        fields.fail("trustPolicies is empty")
    statements = [
        _statement(Fields(item, f"{origin}: trustPolicies[{number}]", ConfigError), stores)
        for number, item in enumerate(items)
    ]
    for what, values in (
        ("name", [statement.name for statement in statements]),
        ("scope", [scope for statement in statements for scope in statement.scopes]),
    ):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            fields.fail(f"the {what} {min(twice)!r} is used twice")
    return TrustPolicy(tuple(statements), origin)


def _statement(fields: Fields, stores: Stores) -> Statement:
    name, scopes = fields.text("name"), fields.texts("registryScopes")
    if "*" in scopes and len(scopes) > 1:
        fields.fail("registryScopes has * beside others")
    for scope in scopes:
        if scope != "*":
            _check_scope(fields, scope)
    verification = fields.object("signatureVerification")
    return judged(name, scopes, fields, verification, stores)


def judged(
    name: str, scopes: tuple[str, ...], fields: Fields, verification: Fields | None, stores: Stores
) -> Statement:
    """A statement from `trustStores`, `trustedIdentities` and `signatureVerification`; None of the last: strict."""
    level = "strict" if verification is None else verification.text("level")
    if level == "skip":
        assert verification is not None
        verification.only_asked()
        if "trustStores" in fields or "trustedIdentities" in fields:
            fields.fail("skips verification, but has trust stores or identities")
        fields.only_asked()
        return Statement(name, scopes, level, {}, {}, None, None)
    actions, timestamps = _actions(verification, level)
    loaded: dict[str, tuple[x509.Certificate, ...]] = {}
    tsa = False
    for store in dict.fromkeys(fields.texts("trustStores")):
        type_, colon, store_name = store.partition(":")
        if not colon or type_ not in _STORE_TYPES or _STORE_NAME.fullmatch(store_name) is None or store_name[0] == ".":
            fields.fail(f"trust store {store[:80]!r} is not one of {', '.join(_STORE_TYPES)}, a colon and a name")
        if type_ == "tsa":
            tsa = True
        else:
            loaded[type_] = loaded.get(type_, ()) + stores(type_, store_name)
    identities = _identities(fields)
    fields.only_asked()
    return Statement(name, scopes, level, actions, loaded, identities, timestamps if tsa else None)


def _actions(verification: Fields | None, level: str) -> tuple[dict[Check, Action], str]:
    if verification is None:
        return dict(_LEVELS[level]), "always"
    if level not in _LEVELS:
        verification.fail(f"level {level[:40]!r} is not one of {', '.join(_LEVELS)}, skip")
    actions = dict(_LEVELS[level])
    override = verification.optional_object("override")
    for key in override.names() if override is not None else ():
        assert override is not None
        if key not in {check.value for check in Check}:
            override.fail(f"unknown check {key[:40]!r}")
        value = override.text(key)
        if value not in {action.value for action in Action}:
            override.fail(f"unknown action {value[:40]!r}")
        check, action = Check(key), Action(value)
        if check is Check.INTEGRITY or (action is Action.SKIP and check is not Check.REVOCATION):
            override.fail(f"{key} can't be set to {value}")
        actions[check] = action
    timestamps = verification.optional_text("verifyTimestamp") or "always"
    if timestamps not in ("always", "afterCertExpiry"):
        verification.fail(f"verifyTimestamp {timestamps[:40]!r} is neither always nor afterCertExpiry")
    verification.only_asked()
    return actions, timestamps


def _identities(fields: Fields) -> tuple[Mapping[str, str], ...] | None:
    texts = fields.texts("trustedIdentities")
    if "*" in texts:
        if len(texts) > 1:
            fields.fail("trustedIdentities has * beside others")
        return None
    names = []
    for text in texts:
        prefix, colon, value = text.partition(":")
        if not colon or prefix != _SUBJECT:
            fields.fail(f"trusted identity {text[:80]!r} is not * nor {_SUBJECT}: and a distinguished name")
        try:
            names.append(parse_name(value))
        except Refused as error:
            raise ConfigError(f"{fields.where}.trustedIdentities: {error}") from error
    for number, one in enumerate(names):
        for other in names[:number] + names[number + 1 :]:
            if covers(one, other):
                fields.fail("trustedIdentities overlap: each name that one accepts must not be accepted by another")
    return tuple(names)


def _check_scope(fields: Fields, scope: str) -> None:
    registry, _, name = scope.partition("/")
    try:
        Repository(registry, name)
    except InvalidReference as error:
        raise ConfigError(
            f"{fields.where}.registryScopes: {scope[:120]!r} is not a repository in full (docker.io/library/alpine)"
        ) from error
