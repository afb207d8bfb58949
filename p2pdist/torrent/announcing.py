"""What this node says of its chunks to neighbours, gathered: to wake a neighbour for a chunk costs more than the chunk.

libtorrent moves pieces on without it, so the time that is spent gathering delays proofs, and of those only the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from p2pdist.errors import StorageError
from p2pdist.torrent.alone import bits
from p2pdist.torrent.live import Live
from p2pdist.torrent.parts import Parts
from p2pdist.torrent.wire import MAX_HAVES, Have, Open, Proof

_log = structlog.get_logger("p2pdist.torrent")
_ATTESTATIONS = 0.1  # seconds in which attestations are gathered that others wait for
_HAVES = 0.25  # seconds in which proved chunks are gathered: only who is not linked to where they entered waits


class Announcer:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sound: dict[Live, int] = {}  # bit masks of chunks to announce
        self._entered: dict[Live, dict[int, bytes]] = {}  # attestations to hand out
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it fires

    def opened(self, live: Live) -> None:
        """This node takes part, or what it said before has changed: say all of it, now."""
        self._sound.pop(live, None)
        frame = open_frame(live)
        for link in self._parts.links.neighbours.values():
            link.send(frame)

    def sound(self, live: Live, index: int) -> None:
        """libtorrent has the proved bytes of a chunk: this node answers for it."""
        if live.sound == live.exchange.full:
            self.opened(live)  # to all: those that have all do not listen for single chunks
            return
        self._sound[live] = self._sound.get(live, 0) | 1 << index
        self._within(0.0 if live.ending else _HAVES)

    def entered(self, live: Live, index: int) -> None:
        """A chunk entered the swarm here, from upstream or another engine: the others need its attestation."""
        try:
            attestation = live.exchange.attestation(index)
        except StorageError as error:
            _log.warning("a chunk can't be attested", digest=live.exchange.name, error=str(error))
            return
        if attestation is not None:
            self._entered.setdefault(live, {})[index] = attestation
            self._within(0.0 if live.ending else _ATTESTATIONS)

    def stop(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._timer, self._due = loop.call_later(seconds, self._say), due

    def _say(self) -> None:
        self._timer = None
        entered, self._entered = self._entered, {}
        sound, self._sound = self._sound, {}
        for live, attestations in entered.items():
            for node in self._listening(live):
                for index, attestation in attestations.items():
                    self._parts.send(node, Proof(live.number, index, attestation))
        for live, mask in sound.items():
            indexes = list(bits(mask & live.sound))
            frames = [Have(live.number, indexes[k : k + MAX_HAVES]) for k in range(0, len(indexes), MAX_HAVES)]
            for node in self._listening(live):
                for frame in frames:
                    self._parts.send(node, frame)

    def _listening(self, live: Live) -> Iterator[bytes]:
        if not live.gone:
            yield from self._parts.near.unfinished(live)


def open_frame(live: Live) -> Open:
    """What this node has of a blob."""
    exchange = live.exchange
    have = live.sound if live.fetching else exchange.full
    bitmap = have.to_bytes((exchange.count + 7) // 8, "little")
    return Open(live.number, exchange.name, exchange.size, exchange.chunk_size, bitmap, live.torrents)
