"""Reads from the upstream registry: under leases, as one stream, and again where somebody lied.

Who reads what is decided elsewhere; here is how a read goes on, what the tracker hears of it, and how it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from p2pdist.errors import StorageError, UpstreamDenied, UpstreamError, UpstreamNotFound
from p2pdist.oci import Digest, Repository
from p2pdist.protocol import messages as wire
from p2pdist.swarm.attest import unpack
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.reading import read_run, runs
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Transfer, Transfers
from p2pdist.upstream import Registry

_log = structlog.get_logger("p2pdist.swarm")
_TRIES = 3  # of a stream in a row that bring no chunk


class UpstreamReader:
    """Every read of large blobs goes through here; `bytes_from_upstream` counts them."""

    def __init__(
        self, registry: Callable[[str], Registry], engine: Engine, tracker: Tracker, transfers: Transfers
    ) -> None:
        self.bytes_from_upstream = 0
        self._registry = registry
        self._engine = engine
        self._tracker = tracker
        self._transfers = transfers
        self._paused: dict[str, float] = {}

    def pause(self, registry: str, seconds: float) -> None:
        """The upstream asked for it: no read of `registry` begins for `seconds`."""
        self._paused[registry] = asyncio.get_running_loop().time() + seconds

    # --- under leases --------------------------------------------------------------------------------------------

    async def lease(self, transfer: Transfer, exchange: Exchange, first: int, end: int) -> None:
        """Read what is missing of [first, end), reporting each chunk; counted in `transfer.reads` by the caller."""
        transfer.reading.update(range(first, end))
        try:
            missing = exchange.full & ~exchange.have
            for start, stop in runs(missing, first, end):
                await self._pause(transfer)
                await read_run(*self._source(transfer), exchange, start, stop, _Leased(self, transfer))
        except UpstreamError as error:
            await self._failed(transfer, exchange, _first_missing(exchange, first, end), error)
        except StorageError as error:
            await self._transfers.end(transfer, error)
        finally:
            transfer.reads -= 1
            transfer.reading.difference_update(range(first, end))
            for index in range(first, end):
                self._engine.unleased(exchange, index)

    def half(self, exchange: Exchange, index: int) -> None:
        """Half of a leased chunk is here."""
        self._tracker.send(wire.Half(exchange.name, index))
        self._engine.coming(exchange, index)

    def coming(self, exchange: Exchange, index: int) -> None:
        """Half of a chunk is here that nobody leased."""
        self._engine.coming(exchange, index)

    def report(self, exchange: Exchange, index: int) -> None:
        """A leased chunk is here, proved and attested."""
        packed = exchange.attestation(index)
        if packed is not None:
            attestation = unpack(packed)
            self._tracker.send(wire.Got(exchange.name, index, attestation.sha256, attestation.signature))

    # --- as one stream -------------------------------------------------------------------------------------------

    async def stream(self, transfer: Transfer, exchange: Exchange) -> None:
        """Read everything that is missing until it is here or recalled; `alone` and `reads` are the caller's to set."""
        try:
            await self._read_missing(transfer, exchange)
        except UpstreamError as error:
            await self._failed(transfer, exchange, _first_missing(exchange, 0, exchange.count), error)
            if not error.temporary or not self._engine.links():
                await self._transfers.end(transfer, error)
        except StorageError as error:
            await self._transfers.end(transfer, error)
        finally:
            transfer.alone = False
            transfer.reads -= 1
            if transfer.recalled:
                transfer.recalled = False
                self._tracker.send(wire.Returned(exchange.name, exchange.bitmap()))

    async def reread(self, transfer: Transfer, exchange: Exchange, indexes: list[int]) -> None:
        """Forget these chunks and read them again. UpstreamError, StorageError: what is still missing stays so."""
        for index in indexes:
            exchange.forget(index)
        transfer.recalled = False
        await self._read_missing(transfer, exchange)

    async def _read_missing(self, transfer: Transfer, exchange: Exchange) -> None:
        tries = 0
        while not transfer.recalled and exchange.have != exchange.full:
            before = exchange.have
            try:
                for start, stop in runs(exchange.full & ~exchange.have, 0, exchange.count):
                    await self._pause(transfer)
                    await read_run(*self._source(transfer), exchange, start, stop, _Alone(self, transfer))
                    if transfer.recalled:
                        break
            except UpstreamError as error:
                tries = tries + 1 if exchange.have == before else 0
                if not error.temporary or tries >= _TRIES:
                    raise
                await asyncio.sleep(error.retry_after or min(5.0, 0.5 * 2**tries))

    # --- common --------------------------------------------------------------------------------------------------

    def count(self, transfer: Transfer, count: int) -> None:
        """Bytes came from upstream."""
        transfer.from_upstream += count
        self.bytes_from_upstream += count
        transfer.rollout.last_progress = asyncio.get_running_loop().time()

    def _source(self, transfer: Transfer) -> tuple[Registry, Repository, Digest]:
        repository = transfer.rollout.plan.repository
        return self._registry(repository.registry), repository, transfer.blob.digest

    async def _pause(self, transfer: Transfer) -> None:
        until = self._paused.get(transfer.rollout.plan.repository.registry, 0.0)
        wait = until - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait)

    async def _failed(self, transfer: Transfer, exchange: Exchange, index: int, error: UpstreamError) -> None:
        final = isinstance(error, (UpstreamNotFound, UpstreamDenied))
        status = error.status or (404 if isinstance(error, UpstreamNotFound) else 0)
        told = self._tracker.send(
            wire.Failed(exchange.name, index, status, final, error.retry_after or 0.0, str(error)[:512])
        )
        _log.warning("a read from upstream failed", digest=exchange.name, chunk=index, error=str(error))
        if not told and final:
            await self._transfers.end(transfer, error)


class _Alone:
    """A stream of everything: nothing is reported, a recall ends it after the chunk at hand."""

    def __init__(self, reader: UpstreamReader, transfer: Transfer) -> None:
        self._reader = reader
        self._transfer = transfer

    def read_wanted(self, exchange: Exchange, index: int) -> bool:
        return not self._transfer.recalled and not exchange.have >> index & 1

    def read_bytes(self, exchange: Exchange, count: int) -> None:
        self._reader.count(self._transfer, count)

    def read_half(self, exchange: Exchange, index: int) -> None:
        self._reader.coming(exchange, index)

    def read_chunk(self, exchange: Exchange, index: int, sha256: bytes) -> None:
        pass


class _Leased:
    """A lease: half and whole chunks are reported."""

    def __init__(self, reader: UpstreamReader, transfer: Transfer) -> None:
        self._reader = reader
        self._transfer = transfer

    def read_wanted(self, exchange: Exchange, index: int) -> bool:
        return not exchange.have >> index & 1

    def read_bytes(self, exchange: Exchange, count: int) -> None:
        self._reader.count(self._transfer, count)

    def read_half(self, exchange: Exchange, index: int) -> None:
        self._reader.half(exchange, index)

    def read_chunk(self, exchange: Exchange, index: int, sha256: bytes) -> None:
        self._reader.report(exchange, index)


def _first_missing(exchange: Exchange, first: int, end: int) -> int:
    """What a failed read of [first, end) stopped at: its lease is found by it."""
    return next((start for start, _ in runs(exchange.full & ~exchange.have, first, end)), first)
