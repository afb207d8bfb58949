"""Who sent the wrong bytes of one blob. Pure; times in seconds of any origin.

In a cold swarm libtorrent passes pieces on before they are proved, and several peers may send blocks of one. So a
wrong chunk proves nothing against whoever sent it: an honest node may have passed on what it was about to refuse. Two
rules make it exact: a node that says that it proved a chunk (Have) answers for every block of it that it is asked for
afterwards; and a node that refuses a chunk says so (Bad) to whoever may have got it. A peer that does neither, or says
Bad too often, is left alone as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16 * 1024  # bytes of a block, the unit of BitTorrent's requests
_PATIENCE = 2.0  # seconds in which a sender must either answer for a refused chunk or disown it
_STRIKES = 2  # refused chunks that it did neither for
_EXCUSES = 8  # refused chunks that it disowned


@dataclass(frozen=True, slots=True)
class Sender:
    """`node`: 32 bytes, empty where only its host is known."""

    node: bytes
    host: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sender` is to be left alone; why."""

    sender: Sender
    index: int
    why: str


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


@dataclass(slots=True)
class Blame:
    """The senders of each block that is on its way or came, and the chunks that were refused."""

    _senders: dict[int, dict[int, dict[Sender, bool]]] = field(default_factory=dict)  # -> it had claimed the chunk
    _disowned: dict[bytes, int] = field(default_factory=dict)  # bit masks of chunks
    _cases: list[_Case] = field(default_factory=list)
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
        if sender is None or not all(senders.get(sender) for senders in known.values()) or self._excused(sender, index):
            return None
        self._cases.remove(case)
        return Verdict(sender, index, "it sent a chunk that is not what it attests")

    def proved(self, index: int, data: bytes) -> list[Verdict]:
        """Chunk `index` is proved to be `data`: who sent other blocks of it before.

        A node that could still disown it is judged by `overdue`, when its word has had the time to come.
        """
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
        why = "it sent blocks of a chunk that turned out to be others"
        return [verdict for sender in guilty if (verdict := self._judged(sender, index, why)) is not None]

    def _judged(self, sender: Sender, index: int, why: str) -> Verdict | None:
        if not sender.node:  # a peer that speaks nothing but BitTorrent can disown nothing
            self._strikes[sender] += 1
            return Verdict(sender, index, why) if self._strikes[sender] >= _STRIKES else None
        if not self._disowned.get(sender.node, 0) >> index & 1:
            self._suspects.append(_Suspect(Verdict(sender, index, why)))
            return None
        return None if self._excused(sender, index) else Verdict(sender, index, why)

    def _excused(self, sender: Sender, index: int) -> bool:
        """It disowned the chunk, and has not done so too often."""
        if not self._disowned.get(sender.node, 0) >> index & 1:
            return False
        self._excuses[sender] += 1
        return self._excuses[sender] <= _EXCUSES

    def overdue(self, now: float) -> list[Verdict]:
        """Senders that neither answered for what was refused nor disowned it, again and again."""
        verdicts = self._guilty(now)
        for case in self._cases:
            sender = case.only_sender()
            if case.struck or sender is None or now - case.at < _PATIENCE:
                continue
            case.struck = True
            if self._excused(sender, case.index):
                continue
            self._strikes[sender] += 1
            if self._strikes[sender] == _STRIKES or self._excuses[sender] > _EXCUSES:
                verdicts.append(Verdict(sender, case.index, f"it sent {_STRIKES} wrong chunks and answers for none"))
        self._cases = [case for case in self._cases if now - case.at < 60 * _PATIENCE]
        return verdicts

    def _guilty(self, now: float) -> list[Verdict]:
        """The suspects that disowned nothing in time."""
        due: list[Verdict] = []
        waiting: list[_Suspect] = []
        for suspect in self._suspects:
            suspect.since = now if suspect.since is None else suspect.since
            if now - suspect.since < _PATIENCE:
                waiting.append(suspect)
            elif not self._excused(suspect.verdict.sender, suspect.verdict.index):
                due.append(suspect.verdict)
        self._suspects = waiting
        return due


def _hashes(data: bytes) -> Sequence[bytes]:
    view = memoryview(data)
    return [hashlib.sha256(view[start : start + BLOCK]).digest() for start in range(0, len(view), BLOCK)]
