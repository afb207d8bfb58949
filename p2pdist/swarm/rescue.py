"""What time brings: rollouts that nobody helps are read from upstream, those that nobody wants are given up."""

from __future__ import annotations

import asyncio

import structlog

from p2pdist.errors import UpstreamUnreachable
from p2pdist.scope import Scope
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.joining import Joining
from p2pdist.swarm.reader import UpstreamReader
from p2pdist.swarm.settings import SwarmSettings
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Rollout, Transfers

_log = structlog.get_logger("p2pdist.swarm")
_LOOK = 0.25  # seconds between two looks


class Rescue:
    """Looks after every rollout while `watch` runs."""

    def __init__(
        self,
        engine: Engine,
        tracker: Tracker,
        transfers: Transfers,
        reader: UpstreamReader,
        joining: Joining,
        scope: Scope,
        settings: SwarmSettings,
    ) -> None:
        self._engine = engine
        self._tracker = tracker
        self._transfers = transfers
        self._reader = reader
        self._joining = joining
        self._scope = scope
        self._settings = settings
        self._lonely: set[str] = set()  # blobs that are streamed because nobody else was there

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK)
            now = asyncio.get_running_loop().time()
            self._lonely &= {str(transfer.blob.digest) for transfer in self._transfers.all}
            for rollout in self._transfers.rollouts:
                if any(transfer.clients for transfer in rollout.transfers):
                    rollout.last_interest = now
                if now - rollout.last_interest > self._settings.linger_seconds:
                    for transfer in rollout.unfinished:
                        error = UpstreamUnreachable("nobody waits for this blob any more")
                        await self._transfers.end(transfer, error)
                else:
                    self.help(rollout, now)

    def help(self, rollout: Rollout, now: float) -> None:
        """Read from upstream what nobody else will bring: at once where nobody else is, else when nothing moves.

        An engine that finds others by itself gets the time for it, and whom it finds later shares what is still to be
        read: then it says who reads what.
        """
        lonely = not self._tracker.connected and not self._engine.links()
        if lonely:
            patience = max(self._engine.discovery, self._settings.join_seconds if self._joining.known else 0.0)
            if now - rollout.began < patience:
                return  # also neighbours of an earlier run may still answer
        elif now - max(rollout.last_progress, rollout.began) < self._settings.stuck_seconds:
            if not self._tracker.connected and self._engine.discovery:
                self._share(rollout)
            return
        streams = sum(transfer.alone for transfer in self._transfers.all)
        for transfer in rollout.unfinished:
            if streams >= self._settings.streams:
                return
            exchange = transfer.exchange
            if exchange is None or transfer.alone or transfer.doubted or exchange.whole:
                continue
            _log.warning(
                "nothing moves: reading from upstream",
                digest=exchange.name,
                missing=exchange.count - exchange.have.bit_count(),
                chunks=exchange.count,
                links=len(self._engine.links()),
                reads=transfer.reads,
            )
            if lonely:
                self._lonely.add(exchange.name)
            transfer.alone, transfer.recalled = True, False
            transfer.reads += 1
            streams += 1
            self._scope.spawn(self._reader.stream(transfer, exchange))

    def _share(self, rollout: Rollout) -> None:
        """Streams end that began because nobody was there."""
        for transfer in rollout.unfinished:
            if transfer.alone and transfer.exchange is not None and transfer.exchange.name in self._lonely:
                self._lonely.discard(transfer.exchange.name)
                transfer.recalled = True
