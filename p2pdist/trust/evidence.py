"""What was found for one image before it is judged: signature material by form, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Form(StrEnum):
    """The forms in which signatures are stored."""

    SIMPLE = "cosign simple signing"
    DSSE = "attached attestation"
    BUNDLE = "sigstore bundle"
    NOTATION = "notation"
    GPG = "GPG simple signing"


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One signature, unverified. `where` names it for people; `media_type` is its blob's, `annotations` its layer's."""

    form: Form
    where: str
    raw: bytes = field(repr=False)
    media_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=_nothing, repr=False, hash=False)


@dataclass(frozen=True, slots=True)
class Unread:
    """Something that might have been a signature and was not looked at. `fault`: it could not be fetched."""

    form: Form | None
    where: str
    reason: str
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything found for one image. `round_trips`: the longest sequence of requests it took."""

    candidates: tuple[Candidate, ...] = ()
    unread: tuple[Unread, ...] = ()
    requests: int = 0
    round_trips: int = 0
    bytes: int = 0
