"""Who is shut out, as one replica knows: what the State says, and what was decided while it couldn't be written."""

from __future__ import annotations

import asyncio

from tracker.tokens import Ban, Facts


class BanBook:
    """A ban noted here is in force here at once, and written down as soon as the State can be reached."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._known: dict[bytes, Ban] = {}
        self._unwritten: dict[bytes, Ban] = {}
        self._version: int | None = None
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
        """It was decided that a node is shut out."""
        if self._known.get(ban.node) != ban:
            self._known[ban.node] = self._unwritten[ban.node] = ban
            self.noted.set()

    def hear(self, ban: Ban) -> None:
        """Another replica has decided it, and will write it down if it lives."""
        known = self._known.get(ban.node)
        if known is None or int(known.until) != int(ban.until):
            self.note(ban)

    def lift(self, node: bytes) -> None:
        """Another replica says that a node may come back."""
        self._known.pop(node, None)
        self._unwritten.pop(node, None)

    async def sync(self, version: int) -> bool:
        """Write what waits, and read what others wrote. `version`: the State's; True: something may have changed.

        Raises:
            StorageError: the State can't be reached; what is known stays in force.
        """
        wrote = await self._write()
        if version == self._version and not wrote:
            return False
        found = await self._facts.bans()
        self._known = found | self._unwritten  # what was decided meanwhile
        self._version = version
        return True

    async def _write(self) -> bool:
        self.noted.clear()
        waiting = list(self._unwritten.values())
        for ban in waiting:
            await self._facts.ban(ban)
            if self._unwritten.get(ban.node) is ban:
                del self._unwritten[ban.node]
        return bool(waiting)
