"""Every chunk was proved and the whole digest is wrong: somebody attested what is not so. Who, and which chunks?

The chunks that others attested are read again from upstream: one of each signer first, which finds who lies often, then
all of one signer after the other, those that were caught first; this node's own reads come last. As soon as a read
differed from what was attested, the whole digest is tried again. Nobody is accused before it holds: only then is it
certain which of two statements was the false one. No chunk is read again twice, so that this costs at most one more
copy (docs/adr/0011).

Where a tracker is there, one node at a time searches like that; the others are told which chunks it found false, and
take them from it, unless the digest is wrong even so (docs/adr/0032).
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import structlog

from p2pdist.errors import DigestMismatch, PeerError, StorageError
from p2pdist.protocol import messages as wire
from p2pdist.protocol.chunks import chunk_range
from p2pdist.protocol.limits import MAX_SUSPECTS
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.evidence import Evidence
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.reader import UpstreamReader
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Transfer, Transfers

_log = structlog.get_logger("p2pdist.swarm")
BAN = 600.0  # seconds that this node believes nothing of whom it caught; the tracker bans for longer, on proof
_SAMPLES = 64  # signers of which one chunk each is read first ...
_SAVING = 4  # ... where they have so many chunks on average
_HINTS = 2  # times that what another node found is tried, before this one searches itself
_PATIENCE = 20.0  # seconds to wait for a turn or a hint, and for the chunks of a hint ...
_LEAST_RATE = 1024 * 1024  # ... and bytes a second
_MOMENT = 2.0  # seconds without any of them, after which this node's own bytes are tried again


class Doubt:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        reader: UpstreamReader,
        clock: Callable[[], float],
        evidence: Evidence,
        transfers: Transfers,
        join: Callable[[Transfer], None],
        rng: random.Random | None = None,
    ) -> None:
        self._rng = rng or random.Random()
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._reader = reader
        self._clock = clock
        self._evidence = evidence
        self._transfers = transfers
        self._join = join
        self._asked: dict[str, asyncio.Future[list[int] | None]] = {}

    async def settle(self, transfer: Transfer, exchange: Exchange, store: Store, error: DigestMismatch) -> None:
        """Returns when the blob is proved and stored after all.

        Raises:
            DigestMismatch: it is wrong as the upstream has it.
            UpstreamError: it can't be read again; StorageError: from the disk.
        """
        _log.error("every chunk was proved and the whole is wrong: somebody lied", digest=exchange.name, why=str(error))
        exchange.doubt(error)
        self._engine.remove(exchange)  # no peer gets a chunk of it until it is known which ones are right
        self._tracker.send(wire.Leave(exchange.name))
        for _ in range(_HINTS):
            hint = await self._turn(exchange)
            if hint is None:
                break
            if await self._mended(transfer, exchange, store, hint):
                self._engine.add(exchange)
                return
        found: list[int] = []
        try:
            found = await self._search(transfer, exchange, store, error)
        finally:
            self._tracker.send(wire.Settled(exchange.name, exchange.chunk_size, found[:MAX_SUSPECTS]))

    async def _turn(self, exchange: Exchange) -> list[int] | None:
        """Chunks that another node found false; None: it is for this node to search."""
        if not self._tracker.send(wire.Doubts(exchange.name, exchange.size, exchange.chunk_size)):
            return None
        answer: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()
        self._asked[exchange.name] = answer
        try:
            async with asyncio.timeout(_PATIENCE + exchange.size / _LEAST_RATE):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[exchange.name]

    def told(self, message: wire.Search | wire.Suspects) -> None:
        """The tracker's answer to Doubts."""
        answer = self._asked.get(message.digest)
        if answer is not None and not answer.done():
            answer.set_result(message.indexes if isinstance(message, wire.Suspects) else None)

    def orphaned(self) -> None:
        """There is no tracker any more: nobody says whose turn it is."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_result(None)

    async def _mended(self, transfer: Transfer, exchange: Exchange, store: Store, hint: list[int]) -> bool:
        """Take these chunks from the swarm once more, with other bytes; whether the whole digest holds then."""
        doubtful = ((index, exchange.witness(index)) for index in hint if index < exchange.count)
        witnesses = {index: witness for index, witness in doubtful if witness is not None}  # own reads are no hearsay
        if not witnesses:
            return False
        for index in witnesses:
            exchange.refuse(index)
            exchange.forget(index)
        transfer.mending = True
        self._engine.add(exchange)
        self._join(transfer)
        try:
            async with asyncio.timeout(_PATIENCE + len(witnesses) * exchange.chunk_size / _LEAST_RATE):
                restored = False
                while not exchange.whole:
                    try:
                        async with asyncio.timeout(None if restored else _MOMENT):
                            await exchange.changed()
                    except TimeoutError:
                        restored = True
                        await self._restore(exchange, witnesses)
                    if exchange.failure is not None:
                        raise StorageError(f"{exchange.name} is given up: {exchange.failure}")
            for index, witness in witnesses.items():
                if witness.sha256 != exchange.sha256(index):
                    exchange.dispute(index, witness)
            await exchange.commit(store)
        except (TimeoutError, DigestMismatch) as error:
            _log.warning("what another node found false is not all", digest=exchange.name, error=str(error))
            self._tracker.send(wire.Leave(exchange.name))
            return False
        finally:
            transfer.mending = False
            self._engine.remove(exchange)
        return True

    async def _restore(self, exchange: Exchange, witnesses: dict[int, wire.Attestation]) -> None:
        """Nobody gives other bytes of these chunks: this node's own count again, unless who attested them is banned.

        A chunk that two nodes read has two attestations. The node that found one of them false may have had that one,
        and this node the true one: which it was, the whole digest says.
        """
        for index, witness in witnesses.items():
            if exchange.have >> index & 1:
                continue
            exchange.relent(index, witness.sha256)
            start, end = chunk_range(index, exchange.size, exchange.chunk_size)
            receiver = exchange.receive(index)
            receiver.feed(exchange.read(start, end - start))  # they are where they were, or else don't match
            try:
                exchange.prove(receiver, witness, witness.signer.node)
            except PeerError as error:
                _log.info("what was doubted stays so", digest=exchange.name, chunk=index, error=str(error))
            await asyncio.sleep(0)

    async def _search(self, transfer: Transfer, exchange: Exchange, store: Store, error: DigestMismatch) -> list[int]:
        """Read again until the digest holds; the chunks that came out different."""
        found: dict[int, bytes] = {}
        done: set[int] = set()
        for step in self._steps(exchange, found):
            again = [index for index in step if index not in done]
            done.update(again)
            if not again or not await self._differs(transfer, exchange, again, found):
                continue
            try:
                await exchange.commit(store)
            except DigestMismatch as mismatch:
                error = mismatch
                continue
            self._engine.add(exchange)
            self._tracker.send(wire.Done(exchange.name))  # before the others hear what to take from here
            return [index for index, sha256 in found.items() if sha256 != exchange.sha256(index)]
        raise error

    def _steps(self, exchange: Exchange, found: dict[int, bytes]) -> Iterator[list[int]]:
        """What to read again, each step once the one before it is read. `found`: the chunks that came out different."""
        yield [index for index in range(exchange.count) if not exchange.have >> index & 1]  # a hint took them away
        groups = suspects(exchange, self._attestor.node)
        samples = self._samples(groups)
        yield list(samples)
        caught = {signer for index, signer in samples.items() if index in found}
        for _, indexes in sorted(groups, key=lambda group: group[0] not in caught):
            yield indexes

    def _samples(self, groups: list[tuple[bytes, list[int]]]) -> dict[int, bytes]:
        """One chunk of each other signer, and whose it is, where that is a saving: who lies often is found by it."""
        others = [(signer, indexes) for signer, indexes in groups if signer != self._attestor.node][:_SAMPLES]
        if len(others) < 2 or _SAVING * len(others) > sum(len(indexes) for _, indexes in others):
            return {}
        return {self._rng.choice(indexes): signer for signer, indexes in others}

    async def _differs(
        self, transfer: Transfer, exchange: Exchange, indexes: list[int], found: dict[int, bytes]
    ) -> bool:
        """Read these chunks again; whether one is another one than it was. `found`: what those were, to be added to."""
        before = {index: (exchange.sha256(index), exchange.witness(index)) for index in indexes}
        await self._reader.reread(transfer, exchange, indexes)
        differs = False
        for index, (sha256, witness) in before.items():
            if sha256 is None:
                differs = True
            elif exchange.sha256(index) != sha256:
                differs = True
                found[index] = sha256
                if witness is not None:
                    exchange.dispute(index, witness)
        return differs

    def banned(self, node: bytes) -> None:
        """`node` is shut out, here or in the cluster: what it attested of blobs on their way is taken from others.

        Else its lies would be found only at the end, by reading again.
        """
        for transfer in self._transfers.all:
            exchange = transfer.exchange
            if exchange is None or transfer.finishing or transfer.alone or exchange.stored:
                continue
            indexes = attested_by(exchange, node)
            if indexes:
                _log.warning(
                    "chunks are taken anew: who attested them is banned", digest=exchange.name, count=len(indexes)
                )
                self._engine.remove(exchange)
                self._tracker.send(wire.Leave(exchange.name))
                for index in indexes:
                    exchange.forget(index)
                exchange.taint()
                self._engine.add(exchange)
                self._join(transfer)

    def judge(self, exchange: Exchange) -> None:
        """The whole digest is proved: whoever attested something else of it lied, by its own signature."""
        liars = {
            attestation.signer.node: (index, attestation, None)
            for index, attestation in exchange.disputes
            if attestation.sha256 != exchange.sha256(index)
        } | {one.signer.node: (index, one, two) for index, one, two in exchange.contradictions}
        for node, (index, statement, other) in liars.items():
            if node == self._attestor.node:
                continue  # the upstream's bytes were wrong when they were read here
            _log.error("a false attestation", signer=node.hex(), digest=exchange.name, chunk=index)
            self._evidence.charge(exchange, index, statement, other)
            self._attestor.ban(node, self._clock() + BAN)
            self._engine.ban(node, BAN)
            self.banned(node)


def attested_by(exchange: Exchange, node: bytes) -> list[int]:
    """The proved chunks of a blob on its way that `node` vouches for."""
    witnesses = ((index, exchange.witness(index)) for index in range(exchange.count))
    return [index for index, witness in witnesses if witness is not None and witness.signer.node == node]


def suspects(exchange: Exchange, own: bytes) -> list[tuple[bytes, list[int]]]:
    """The chunks by who attested them: those already contradicted first, then whose are fewest, `own` reads last."""
    by_signer: dict[bytes, list[int]] = defaultdict(list)
    for index in range(exchange.count):
        if not exchange.have >> index & 1:
            continue
        witness = exchange.witness(index)
        by_signer[own if witness is None else witness.signer.node].append(index)
    contradicted = {index for index, _ in exchange.disputes}

    def rank(signer: bytes) -> tuple[bool, bool, int]:
        return signer == own, contradicted.isdisjoint(by_signer[signer]), len(by_signer[signer])

    return [(signer, by_signer[signer]) for signer in sorted(by_signer, key=rank)]
