"""The deny list: what no node of the cluster may give to anybody. Kept in the State, told to every agent.

Table `deny` of the State: an `Entry` by the text of its `ImagePattern`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from p2pdist.errors import InputError
from p2pdist.oci import ImagePattern
from p2pdist.protocol import limits
from p2pdist.protocol.messages import Denied, DenyChange, DenyList, FromTracker
from tracker.state import State

DENY = "deny"
log = structlog.get_logger()


class Entry(msgspec.Struct, frozen=True):
    """Why it is denied, and since when (Unix seconds)."""

    why: str
    at: float


async def deny(state: State, pattern: ImagePattern, why: str, now: float) -> None:
    """Put a set of images on the list, or give another reason for one that is there.

    Raises:
        InputError: a reason is missing or too long, or the list is full.
        StorageError
    """
    why = " ".join(why.split())
    if not 0 < len(why) <= limits.MAX_WHY:
        raise InputError(f"--why: wanted a reason of 1 to {limits.MAX_WHY} characters; users will read it")
    known = await state.all(DENY)
    if len(known) >= limits.MAX_DENIED and pattern.text not in known:
        raise InputError(f"the deny list has {len(known)} entries, which is all it may have; remove some first")
    await state.put(DENY, pattern.text, msgspec.msgpack.encode(Entry(why, now)))


async def allow(state: State, pattern: ImagePattern) -> bool:
    """Take it off the list; False: it wasn't there. StorageError."""
    return await state.remove(DENY, pattern.text)


async def listed(state: State) -> dict[str, Entry]:
    """The list. An entry that can't be read still denies. StorageError."""
    return {text: _entry(text, record) for text, record in sorted((await state.all(DENY)).items())}


def _entry(text: str, record: bytes) -> Entry:
    try:
        return msgspec.msgpack.decode(record, type=Entry)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        log.error("an entry of the deny list can't be read", subject=text, error=str(error))
        return Entry("its reason can't be read", 0.0)


class DenyBook:
    """The list as it was last told to the agents. Pure."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}
        self._known = False  # until the list was read, nobody is told that it is empty

    def __len__(self) -> int:
        return len(self._entries)

    def replace(self, entries: Mapping[str, str]) -> list[FromTracker]:
        """The list is this now, reasons by subject; what agents that know the old one are to be told."""
        added = [Denied(text, why) for text, why in entries.items() if self._entries.get(text) != why]
        removed = [text for text in self._entries if text not in entries]
        first, self._known = not self._known, True
        self._entries = dict(entries)
        if first or len(added) + len(removed) > len(entries):
            return self.whole()
        step = limits.MAX_DENIED_PER_MESSAGE
        out: list[FromTracker] = [DenyChange([], removed[at : at + step]) for at in range(0, len(removed), step)]
        return out + [DenyChange(added[at : at + step]) for at in range(0, len(added), step)]

    def whole(self) -> list[FromTracker]:
        """The whole list, for an agent that comes."""
        if not self._known:
            return []
        entries = [Denied(text, why) for text, why in self._entries.items()]
        step = limits.MAX_DENIED_PER_MESSAGE
        return [
            DenyList(entries[at : at + step], final=at + step >= len(entries))
            for at in range(0, max(1, len(entries)), step)
        ]
