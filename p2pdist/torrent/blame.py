"""Who sent the wrong bytes of one blob. Pure; times in seconds of any origin.

In a cold swarm libtorrent passes pieces on before they are proved, and several peers may send blocks of one. So a
wrong chunk proves nothing against whoever sent it: an honest node may have passed on what it was about to refuse. Two
rules make it exact: a node that says that it proved a chunk (Have) answers for every block of it that it is asked for
afterwards; and a node that refuses or drops a chunk unproved says so (Bad) to whoever may have got it, before it can
say Have. A peer that does neither, or says Bad too often, is left alone but not accused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BLOCK = 16 * 1024  # bytes of a block, the unit of BitTorrent's requests
_PATIENCE = 3.0  # seconds in which a sender must either answer for a wrong chunk or disown it
_STRIKES = 2  # refused chunks that it did neither for
_EXCUSES = 8  # refused chunks that it disowned


@dataclass(frozen=True, slots=True)
class Sender:
    """`node`: 32 bytes, empty where only its host is known."""

    node: bytes
    host: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sender` is to be left alone; why. `certain`: it lied, and may be accused of it."""

    sender: Sender
    index: int
    why: str
    certain: bool


@dataclass(slots=True)
class _Case:
    """A refused chunk: the hash and the possible senders of each of its blocks."""

    index: int
    blocks: list[tuple[bytes, frozenset[Sender]]]
    at: float
    struck: bool = False

    def only_sender(self) -> Sender | None:
        senders = frozenset[Sender]().union(*(senders for _, senders in self.blocks))
        return next(iter(senders)) if len(senders) == 1 else None


@dataclass(slots=True)
class _Suspect:
    """It sent wrong blocks; the word that it disowned the chunk may still be on its way. `since`: of the first look."""

    verdict: Verdict
    since: float | None = None


@dataclass(frozen=True, slots=True)
class _Wrong:
    """`sender` sent a block of a chunk that is proved to be another."""

    sender: Sender
    index: int
    at: float


@dataclass(slots=True)
class Blame:
    """The senders of each block that is on its way or came, and the chunks that were refused."""

    _senders: dict[int, dict[int, dict[Sender, bool]]] = field(default_factory=dict)  # -> it had claimed the chunk
    _disowned: dict[bytes, int] = field(default_factory=dict)  # bit masks of chunks
    _cases: list[_Case] = field(default_factory=list)
    _wrong: list[_Wrong] = field(default_factory=list)
    _suspects: list[_Suspect] = field(default_factory=list)
    _strikes: Counter[Sender] = field(default_factory=Counter)
    _excuses: Counter[Sender] = field(default_factory=Counter)

    def asked(self, index: int, block: int, sender: Sender, claimed: bool) -> None:
        """A block was asked of `sender`, who had (or had not) said that it proved the chunk."""
        self._senders.setdefault(index, {}).setdefault(block, {}).setdefault(sender, claimed)

    def came(self, index: int, block: int, sender: Sender) -> None:
        """A block came from `sender` and nobody else."""
        known = self._senders.setdefault(index, {}).setdefault(block, {})
        self._senders[index][block] = {sender: known.get(sender, False)}

    def senders(self, index: int) -> set[Sender]:
        """Who may have sent some of chunk `index`."""
        return {sender for senders in self._senders.get(index, {}).values() for sender in senders}

    def disowned(self, node: bytes, index: int) -> None:
        """`node` says that what it had of the chunk was wrong."""
        self._disowned[node] = self._disowned.get(node, 0) | 1 << index

    def forget(self) -> None:
        """What was on its way is not any more (refused chunks stay in mind)."""
        self._senders.clear()

    def refused(self, index: int, data: bytes, now: float) -> Verdict | None:
        """Chunk `index` is refused; it came as `data`. Who is guilty beyond doubt, if anybody is."""
        known = self._senders.pop(index, {})
        case = _Case(index, [(h, frozenset(known.get(k, ()))) for k, h in enumerate(_hashes(data))], now)
        self._cases.append(case)
        sender = case.only_sender()
        claimed = sender is not None and all(senders.get(sender) for senders in known.values())
        if sender is None or not claimed or self._excused(sender, index):
            return None
        self._cases.remove(case)
        return Verdict(sender, index, "it sent a chunk that is not what it attests", certain=True)

    def proved(self, index: int, data: bytes, now: float) -> list[Verdict]:
        """Chunk `index` is proved to be `data`: who sent other blocks of it before."""
        self._senders.pop(index, None)
        cases = [case for case in self._cases if case.index == index]
        if not cases:
            return []
        self._cases = [case for case in self._cases if case.index != index]
        right = _hashes(data)
        guilty: dict[Sender, None] = {}
        for case in cases:
            for (got, senders), wanted in zip(case.blocks, right, strict=False):
                if got != wanted and len(senders) == 1:
                    guilty.update(dict.fromkeys(senders))
        self._wrong += [_Wrong(sender, index, now) for sender in guilty if sender.node]
        strangers = [sender for sender in guilty if not sender.node]  # they speak BitTorrent only, and disown nothing
        return [verdict for sender in strangers if (verdict := self._strike(sender, index)) is not None]

    def overdue(self, now: float, claims: Callable[[bytes, int], bool]) -> list[Verdict]:
        """Those that had time to disown what they sent, and did not. `claims`: a node says that it proved a chunk."""
        verdicts: list[Verdict | None] = []
        for wrong in [wrong for wrong in self._wrong if now - wrong.at >= _PATIENCE]:
            self._wrong.remove(wrong)
            sender, index = wrong.sender, wrong.index
            if self._disowns(sender, index):
                verdicts.append(self._excuse(sender, index))
            elif claims(sender.node, index):
                why = "it sent other blocks of a chunk than those that it answers for"
                verdicts.append(Verdict(sender, index, why, certain=True))
            else:
                verdicts.append(self._strike(sender, index))
        for case in [case for case in self._cases if not case.struck and now - case.at >= _PATIENCE]:
            case.struck = True
            only = case.only_sender()
            if only is not None and self._disowns(only, case.index):
                verdicts.append(self._excuse(only, case.index))
            elif only is not None and not claims(only.node, case.index):
                verdicts.append(self._strike(only, case.index))
        self._cases = [case for case in self._cases if now - case.at < 60 * _PATIENCE]
        return [verdict for verdict in verdicts if verdict is not None]

    def left(self, node: bytes) -> None:
        """`node` is gone, and can disown nothing any more."""
        for wrong in self._wrong:
            if wrong.sender.node == node:
                self._excuses[wrong.sender] += 1
        self._wrong = [wrong for wrong in self._wrong if wrong.sender.node != node]
        for case in self._cases:
            only = case.only_sender()
            case.struck = case.struck or (only is not None and only.node == node)

    def _disowns(self, sender: Sender, index: int) -> bool:
        return bool(self._disowned.get(sender.node, 0) >> index & 1)

    def _excused(self, sender: Sender, index: int) -> bool:
        """It disowned the chunk, and has not done so too often."""
        return self._disowns(sender, index) and self._excuse(sender, index) is None

    def _excuse(self, sender: Sender, index: int) -> Verdict | None:
        self._excuses[sender] += 1
        if self._excuses[sender] <= _EXCUSES:
            return None
        return Verdict(sender, index, "too much of what it sends turns out wrong", certain=False)

    def _strike(self, sender: Sender, index: int) -> Verdict | None:
        self._strikes[sender] += 1
        if self._strikes[sender] < _STRIKES:
            return None
        return Verdict(sender, index, "it sends wrong chunks and answers for none", certain=False)


def _hashes(data: bytes) -> Sequence[bytes]:
    view = memoryview(data)
    return [hashlib.sha256(view[start : start + BLOCK]).digest() for start in range(0, len(view), BLOCK)]
