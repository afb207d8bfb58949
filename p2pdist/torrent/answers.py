"""Gives neighbours the attestations they ask for, a few per turn of the loop."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from p2pdist.errors import ProtocolError, StorageError
from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.wire import Proof

_log = structlog.get_logger("p2pdist.torrent")
_TURN = 0.002  # seconds of a turn of the loop: making one may mean to hash a chunk
_WAITING = 65_536  # questions that may wait


class Answers:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._questions: deque[tuple[bytes, Live, int]] = deque()

    def asked(self, node: bytes, live: Live, indexes: list[int]) -> None:
        """A neighbour asks. ProtocolError if too much is asked for."""
        if len(self._questions) + len(indexes) > _WAITING:
            raise ProtocolError("too many attestations asked for")
        if not self._questions:
            asyncio.get_running_loop().call_soon(self._turn)
        self._questions.extend((node, live, index) for index in indexes if index < live.exchange.count)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _TURN
        while self._questions:
            self._answer(*self._questions.popleft())
            if loop.time() > until:
                break
        if self._questions:
            loop.call_soon(self._turn)

    def _answer(self, node: bytes, live: Live, index: int) -> None:
        if live.gone or node not in self._parts.links.neighbours:
            return
        packed = None
        if live.exchange.have >> index & 1:
            try:
                packed = live.exchange.attestation(index)
            except (OSError, StorageError) as error:
                _log.warning("a chunk can't be attested", digest=live.exchange.name, error=str(error))
        self._parts.send(node, Proof(live.number, index, packed or b""))
