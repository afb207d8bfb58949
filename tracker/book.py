"""Who is shut out, as one replica knows: what the State says, and what was decided while it couldn't be written."""

from __future__ import annotations

import asyncio

from tracker.tokens import Ban, Facts


class BanBook:
    """A ban noted here is in force here at once, and written down as soon as the State can be reached."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._known: dict[bytes, Ban] = {}
        self._unwritten: dict[bytes, tuple[Ban, bool]] = {}  # and whether it replaces what others wrote
        self._version: int | None = None
        self._mark: bytes | None = None
        self.noted = asyncio.Event()  # something waits to be written

    @property
    def unwritten(self) -> int:
        """Bans that only this replica knows."""
        return len(self._unwritten)

    def until(self, now: float, node: bytes) -> float | None:
        """When the node may come back; None: now."""
        ban = self._known.get(node)
        return ban.until if ban is not None and ban.until > now else None

    def bans(self, now: float) -> dict[bytes, Ban]:
        """Those in force."""
        return {node: ban for node, ban in self._known.items() if ban.until > now}

    def note(self, ban: Ban) -> None:
        """It was decided here that a node is shut out."""
        if self._known.get(ban.node) != ban:
            self._known[ban.node] = ban
            self._unwritten[ban.node] = (ban, True)
            self.noted.set()

    def hear(self, now: float, node: bytes, until: int) -> None:
        """The replica that leads tells agents of a ban, or that it is over; it writes it down itself, if it lives."""
        if until <= now:
            self._known.pop(node, None)
            self._unwritten.pop(node, None)
            return
        known = self._known.get(node)
        if known is None or int(known.until) != until:
            ban = Ban(node, until, "the tracker that led shut it out")
            self._known[node] = ban
            self._unwritten[node] = (ban, False)
            self.noted.set()

    async def sync(self, version: int) -> bool:
        """Write what waits, and read what others wrote. `version`: the State's; True: something may have changed.

        A State that has lost its data is told again: who was shut out stays out.

        Raises:
            StorageError: the State can't be reached; what is known stays in force.
        """
        wrote = await self._write()
        if version == self._version and not wrote:
            return False
        mark = await self._facts.mark()
        if self._mark is not None and mark != self._mark:
            self._unwritten = {node: (ban, False) for node, ban in self._known.items()} | self._unwritten
            await self._write()
        self._mark = mark
        found = await self._facts.bans()
        self._known = found | {node: ban for node, (ban, _) in self._unwritten.items()}  # what was decided meanwhile
        self._version = version
        return True

    async def _write(self) -> bool:
        self.noted.clear()
        waiting = list(self._unwritten.values())
        for ban, replaces in waiting:
            await self._facts.ban(ban, replace=replaces)
            if self._unwritten.get(ban.node) == (ban, replaces):
                del self._unwritten[ban.node]
        return bool(waiting)
