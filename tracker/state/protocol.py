"""What a cluster's trackers must agree on and not forget: small records in tables, and who leads.

One file per tracker (SQLite), or one Redis for all its replicas; the same contract suite runs on both. Swarms are not
in here: they are soft, agents say them again, and one leader decides on them (docs/adr/0030).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads. `term` grows with every change of leader: what an older one says is void."""

    owner: str
    address: str
    term: int


class State(Protocol):
    """Records `table, key -> value`; each call is atomic across replicas. `expires` is Unix seconds, None: never.

    Every method raises StorageError when the state can't be reached; nothing is half done then, except that a change
    whose answer was lost may have happened.
    """

    async def get(self, table: str, key: str) -> bytes | None:
        """The record, or None."""

    async def all(self, table: str) -> dict[str, bytes]:
        """Every record of a table that has not expired."""

    async def put(self, table: str, key: str, value: bytes, expires: float | None = None) -> None:
        """Write a record over whatever is there."""

    async def create(self, table: str, key: str, value: bytes, expires: float | None = None) -> bool:
        """Write a record where there is none; False: there is one."""

    async def replace(self, table: str, key: str, old: bytes, new: bytes, expires: float | None = None) -> bool:
        """Write a record in place of exactly `old`; False: it is another one by now, or none."""

    async def remove(self, table: str, key: str) -> bool:
        """Delete a record; False: there was none."""

    async def version(self) -> int:
        """Changes whenever anybody changes a record: cheap enough to be asked several times a second."""

    async def lead(self, owner: str, address: str, lifetime: float) -> Leader:
        """Become the leader, or stay it, for `lifetime` seconds, unless another one is; returns who leads now."""

    async def resign(self, owner: str) -> None:
        """Let somebody else lead at once; nothing happens if `owner` doesn't."""

    async def close(self) -> None:
        """Nothing works afterwards."""
