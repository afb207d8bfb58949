"""What the gate has done, for status, metrics and explanations."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from p2pdist.trust.policy import Enforcement
from p2pdist.trust.verdict import Verdict

_SHOWN = 64


@dataclass(slots=True)
class Counts:
    """Events since the start.

    Attributes:
        judged: verdicts made.
        accepted: of these.
        refused: manifests that were asked for and did not pass, each time.
        would_refuse: the same, which passed because of "warn".
        known: manifests that passed without a new verdict.
        signature_objects: manifests that passed by their shape.
        blobs_refused: blobs that were asked for and did not pass.
        not_judged: manifests that "warn" had no room to judge.
    """

    judged: int = 0
    accepted: int = 0
    refused: int = 0
    would_refuse: int = 0
    known: int = 0
    signature_objects: int = 0
    blobs_refused: int = 0
    not_judged: int = 0

    def copy(self) -> Counts:
        """These counts as they are now."""
        return replace(self)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal with when it was (seconds since 1970) and whether it kept the image from being served."""

    at: float
    enforced: bool
    verdict: Verdict


class RefusalLog:
    """The last refusals, one per image."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=_SHOWN)

    def add(self, refusal: Refusal) -> None:
        """Remember it in place of an older one of the same image."""
        one = refusal.verdict
        for older in self._last:
            if (older.verdict.repository, older.verdict.target, older.verdict.digest) == (
                *(one.repository, one.target, one.digest),
            ):
                self._last.remove(older)
                break
        self._last.append(refusal)

    def recent(self) -> tuple[Refusal, ...]:
        """Newest first."""
        return tuple(reversed(self._last))


@dataclass(frozen=True, slots=True)
class GateStatus:
    """What is in force. `problem`: what is wrong with a changed policy file, while the one before stays in force."""

    enforcement: Enforcement
    policy_file: str
    generation: str
    problem: str | None
    counts: Counts
    refusals: tuple[Refusal, ...]
