"""Clients' credentials that blobs are read with where the node's own are refused. Pure; in memory, and not for long.

A private image that only the client can log in for would else come through the agent up to its manifest, and no
further. Whether a client may have something is never decided by these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

LOAN = 300.0  # seconds; tokens live about as long
MAX_LOANS = 256  # repositories


@dataclass(slots=True)
class _Loan:
    authorization: str = field(repr=False)
    until: float
    needed: bool = False  # the node's own were refused


class Loans:
    """Of one registry; by repository. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._loans: OrderedDict[str, _Loan] = OrderedDict()

    def lend(self, repository: str, authorization: str) -> None:
        """The latest one counts."""
        old = self._loans.pop(repository, None)
        needed = old is not None and old.needed
        self._loans[repository] = _Loan(authorization, self._clock() + LOAN, needed)
        while len(self._loans) > MAX_LOANS:
            self._loans.popitem(last=False)

    def instead(self, repository: str) -> str | None:
        """What to send at once, because the node's own are known to be refused."""
        loan = self._current(repository)
        return loan.authorization if loan is not None and loan.needed else None

    def after_refusal(self, repository: str, refused: str | None) -> str | None:
        """What to try now that `refused` (None: the node's own) was refused."""
        loan = self._current(repository)
        if loan is None:
            return None
        if loan.authorization == refused:
            del self._loans[repository]
            return None
        loan.needed = True
        return loan.authorization

    def _current(self, repository: str) -> _Loan | None:
        loan = self._loans.get(repository)
        if loan is not None and self._clock() >= loan.until:
            del self._loans[repository]
            return None
        return loan
