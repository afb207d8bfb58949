"""Stored blobs are hashed again by and by: a disk that forgets is found before a daemon or a peer asks for the blob.

A file's stamp can't tell: bits that rot leave size and times as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.store.store import Store

SETTLED = 60.0  # seconds after the start in which a node has other things to do
LOOK = 600.0  # seconds from one look for a blob that is due to the next, where there is none
_log = structlog.get_logger(__name__)


class Recheck:
    """Reads at most `rate` bytes a second. `lost` is told of each blob that was not what its digest says, and is gone.

    `sleep` is asyncio's, but for tests.
    """

    def __init__(
        self,
        store: Store,
        rate: int,
        lost: Callable[[Digest], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._rate = rate
        self._lost = lost
        self._sleep = sleep

    async def run(self) -> None:
        """For ever; cancelled to stop."""
        await self._sleep(SETTLED)
        while True:
            try:
                digest = await self._store.recheck_oldest(self._rate)
            except StorageError as error:
                _log.warning("a stored blob can't be hashed again just now", error=str(error))
                digest = None
            if digest is None:
                await self._sleep(LOOK)
            elif self._store.find(digest) is None:
                await self._lost(digest)
