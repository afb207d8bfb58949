"""What a policy may require of an image: the types of containers-policy.json(5), and p2pdist's own.

Own types, for what that format can't say; their names can't become those of a later version of it:
`p2pdist.sigstoreBundle` (a sigstore bundle by key or identity), `p2pdist.sigstoreSimpleKeyless` (simple signing by
identity, under a trusted_root.json), `p2pdist.notation`, `p2pdist.attestation` (an in-toto attestation with
conditions on its predicate).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pdist.trust.evidence import Form
from p2pdist.trust.identity import SignedIdentity
from p2pdist.trust.keys import TrustedKey
from p2pdist.trust.notation.trustpolicy import TrustPolicy
from p2pdist.trust.signatures.keyless import KeylessTrust
from p2pdist.trust.signatures.simplesigning import SimpleTrust
from p2pdist.trust.signatures.statement import COSIGN_SIGN, Condition


@dataclass(frozen=True, slots=True)
class AcceptAnything:
    """`insecureAcceptAnything`."""

    forms: frozenset[Form] = field(default=frozenset(), init=False)

    def __str__(self) -> str:
        return "insecureAcceptAnything"


@dataclass(frozen=True, slots=True)
class Reject:
    """`reject`."""

    forms: frozenset[Form] = field(default=frozenset(), init=False)

    def __str__(self) -> str:
        return "reject"


@dataclass(frozen=True, slots=True)
class SimpleSigned:
    """`sigstoreSigned`, and simple signing by identity: cosign's payload with a name, which `identity` accepts."""

    trust: SimpleTrust
    identity: SignedIdentity
    type_: str
    forms: frozenset[Form] = field(default=frozenset({Form.SIMPLE}), init=False)

    def __str__(self) -> str:
        return f"{self.type_} ({self.trust}, {self.identity})"


@dataclass(frozen=True, slots=True)
class BundleSigned:
    """A sigstore bundle (or, by key, cosign's attached attestation) of one predicate type, meeting all conditions."""

    trust: tuple[TrustedKey, ...] | KeylessTrust
    predicate_type: str
    conditions: tuple[Condition, ...]
    type_: str
    forms: frozenset[Form]

    def __str__(self) -> str:
        by = str(self.trust) if isinstance(self.trust, KeylessTrust) else " or ".join(str(key) for key in self.trust)
        what = "" if self.predicate_type == COSIGN_SIGN else f", {self.predicate_type}"
        return f"{self.type_} ({by}{what}{''.join(f', {condition}' for condition in self.conditions)})"


@dataclass(frozen=True, slots=True)
class NotationSigned:
    """A notation signature, judged by the statement of a trust policy, or by one statement for every repository."""

    policy: TrustPolicy
    forms: frozenset[Form] = field(default=frozenset({Form.NOTATION}), init=False)

    def __str__(self) -> str:
        return f"p2pdist.notation ({self.policy.origin})"


@dataclass(frozen=True, slots=True)
class GpgSigned:
    """`signedBy`: GPG simple signing by a key of the keyring."""

    keyring: bytes = field(repr=False)
    origin: str
    identity: SignedIdentity
    forms: frozenset[Form] = field(default=frozenset({Form.GPG}), init=False)

    def __str__(self) -> str:
        return f"signedBy ({self.origin}, {self.identity})"


Requirement = AcceptAnything | Reject | SimpleSigned | BundleSigned | NotationSigned | GpgSigned
