"""Signed lies that this node has found, and their proof: the blob itself, shown to the tracker when it asks.

Kept until the signer is shut out, so that a tracker which was away, or asked somebody else first, hears of them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from p2pdist.errors import StorageError
from p2pdist.oci import Digest
from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import Attestation
from p2pdist.scope import Scope
from p2pdist.store import Store
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.tracker import Tracker

_log = structlog.get_logger("p2pdist.swarm")
_KEPT = 600.0  # seconds for which a charge is held up
_MOST = 256  # charges at once


class Evidence:
    """See the module."""

    def __init__(self, store: Store, tracker: Tracker, scope: Scope, clock: Callable[[], float]) -> None:
        self._store = store
        self._tracker = tracker
        self._scope = scope
        self._clock = clock
        self._charges: dict[bytes, tuple[wire.Convict, float]] = {}  # by signer: one lie is enough

    def charge(self, exchange: Exchange, index: int, statement: Attestation, other: Attestation | None = None) -> None:
        """The signer of `statement` lied of chunk `index` of a proved blob, or contradicts itself by `other`."""
        charge = wire.Convict(exchange.name, exchange.size, exchange.chunk_size, index, statement, other)
        self._forget_old()
        if len(self._charges) < _MOST:
            self._charges.setdefault(statement.signer.node, (charge, self._clock() + _KEPT))
        self._tracker.send(charge)

    def again(self) -> None:
        """A tracker is there that has not heard it."""
        self._forget_old()
        for charge, _ in self._charges.values():
            self._tracker.send(charge)

    def banned(self, node: bytes) -> None:
        """The cluster knows."""
        self._charges.pop(node, None)

    def show(self, message: wire.Show) -> None:
        """The tracker wants to see bytes of a blob that this node gave as proof; of no other."""
        self._forget_old()
        if any(charge.digest == message.digest for charge, _ in self._charges.values()):
            self._scope.spawn(self._show(message))
        else:
            self._tracker.send(wire.Shown(message.digest, message.offset))

    async def _show(self, message: wire.Show) -> None:
        data = b""
        try:
            blob = await self._store.open_blob(Digest.parse(message.digest))
            if blob is not None:
                with blob:
                    data = await asyncio.to_thread(blob.pread, message.offset, message.length)
        except StorageError as error:
            _log.warning("what proves a lie can't be read", digest=message.digest, error=str(error))
        self._tracker.send(wire.Shown(message.digest, message.offset, data))

    def _forget_old(self) -> None:
        now = self._clock()
        self._charges = {node: kept for node, kept in self._charges.items() if kept[1] > now}
