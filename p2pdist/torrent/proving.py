"""Proof of what libtorrent brought: behind a flush barrier, against an attestation, through `Exchange.prove`.

A piece that libtorrent reports is not in its file yet; one whose bytes match no attestation is refused only after a
second barrier, and after other neighbours were asked for theirs.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from p2pdist.errors import PeerError, ProtocolError, StorageError
from p2pdist.scope import Scope
from p2pdist.swarm.attest import Attestor, unpack
from p2pdist.swarm.exchange import Exchange, Receiver
from p2pdist.torrent.files import Cut, read_chunk, same_chunk
from p2pdist.torrent.live import Live, Loaded

_log = structlog.get_logger("p2pdist.torrent")
_BATCH = 4 * 1024 * 1024  # bytes read from the scratch file at a time
_SLICE = 256 * 1024  # bytes hashed and written between two turns of the loop
_ASKED = 3  # neighbours whose attestations are looked at before a chunk is refused
_ANSWER = 1.0  # seconds for an answer


class ProverOwner(Protocol):
    """Who is told what comes out."""

    def claimants(self, live: Live, index: int) -> list[bytes]:
        """The neighbours that say that they proved the chunk."""

    def need(self, node: bytes, live: Live, indexes: list[int]) -> None:
        """Ask a neighbour for its attestations."""

    def proved(self, live: Live, index: int, data: bytes) -> None:
        """A chunk from peers is proved now; libtorrent has the same bytes if it is `sound`."""

    def refused(self, live: Live, index: int, data: bytes) -> None:
        """A chunk matches no attestation that a member signed."""

    def misattested(self, live: Live, index: int, node: bytes, why: str) -> None:
        """A neighbour gave an attestation that nobody may believe."""

    def sound(self, live: Live, index: int) -> None:
        """libtorrent has the proved bytes of a chunk that came here on another way."""

    def unsound(self, live: Live, index: int) -> None:
        """It has others."""


class Prover:
    """See the module."""

    def __init__(
        self,
        owner: ProverOwner,
        attestor: Attestor,
        pool: ThreadPoolExecutor,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._owner = owner
        self._attestor = attestor
        self._pool = pool
        self._rng = rng

    def start(self, scope: Scope) -> None:
        """Ready for `pump`."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()

    def pump(self, live: Live) -> None:
        """Prove what can be proved."""
        if not live.proving and not live.gone and self._batch(live):
            live.proving = True
            self._scope.spawn(self._run(live))

    def _batch(self, live: Live) -> list[int]:
        """What to look at next."""
        batch: list[int] = []
        room = _BATCH
        now = self._loop.time()
        for index in live.provable:
            if index in live.held and not live.exchange.have >> index & 1:
                seen, until = live.held[index]
                if len(live.proofs.get(index, ())) == seen and now < until:
                    continue
            batch.append(index)
            room -= live.cut.span(index)[1]
            if room <= 0:
                break
        return batch

    def ask(self, live: Live, indexes: Iterable[int]) -> None:
        """Chunks are here or on their way to the file: get their attestations meanwhile, if nobody has sent them."""
        now = self._loop.time()
        wanted: dict[bytes, list[int]] = {}
        for index in indexes:
            if not live.exchange.have >> index & 1 and (index not in live.proofs or index in live.landed):
                node = self._choose(live, index, now)
                if node is not None:
                    live.needs.setdefault(index, {})[node] = now
                    wanted.setdefault(node, []).append(index)
        for node, some in wanted.items():
            self._owner.need(node, live, some)

    def _choose(self, live: Live, index: int, now: float) -> bytes | None:
        """Whom to ask, unless an answer is on its way: best one that sent some of the chunk."""
        asked = live.needs.get(index, {})
        if any(now - when < _ANSWER for when in asked.values()):
            return None
        claimants = self._owner.claimants(live, index)
        fresh = [node for node in claimants if node not in asked]
        senders = {sender.node for sender in live.blame.senders(index)}
        best = [node for node in fresh if node in senders] or fresh or claimants
        return self._rng.choice(best) if best else None

    def look_again(self, live: Live) -> None:
        """Ask again for what did not come, and look again at what was held; a few times a second."""
        self.ask(live, list(live.landed))
        self.pump(live)

    async def _run(self, live: Live) -> None:
        try:
            while not live.gone and (batch := self._batch(live)):
                loaded = live.current
                read = await self._loop.run_in_executor(
                    self._pool, _read, live.scratch, live.source, live.cut, batch, live.exchange.have
                )
                for index, data in read:
                    if live.gone or live.current is not loaded:
                        return  # loaded anew meanwhile: what is not proved comes again
                    await self._look(live, loaded, index, data)
        except StorageError as error:
            live.exchange.fail(error)
        finally:
            live.proving = False

    async def _look(self, live: Live, loaded: Loaded | None, index: int, data: bytes | bool) -> None:
        if isinstance(data, bool):
            live.provable.discard(index)
            if data:
                live.sound |= 1 << index
                self._owner.sound(live, index)
            elif not self._again(live, index):
                self._owner.unsound(live, index)
            return
        if live.exchange.have >> index & 1:
            return  # proved while this was read: compared in the next batch
        receiver = live.exchange.receive(index)
        try:
            await _feed(receiver, data)
            if live.gone:
                return
            live.looking = index
            proved = self._prove(live, index, receiver)
            live.looking = None
            if proved:
                live.provable.discard(index)
                if live.current is loaded:
                    live.sound |= 1 << index
                self._dispute(live, index, receiver.digest())
                self._owner.proved(live, index, data)
                return
        finally:
            receiver.close()
        if not live.exchange.have >> index & 1:
            self._mismatch(live, index, data)

    def _prove(self, live: Live, index: int, receiver: Receiver) -> bool:
        got = receiver.digest()
        proofs = live.proofs.get(index, {})
        for node, packed in list(proofs.items()):
            try:
                attestation = unpack(packed)
                if attestation.sha256 == got:
                    return live.exchange.prove(receiver, attestation, node)
            except (PeerError, ProtocolError) as error:
                del proofs[node]
                self._owner.misattested(live, index, node, str(error))
        return False

    def _dispute(self, live: Live, index: int, sha256: bytes) -> None:
        """Members that signed something else of a proved chunk: the whole digest will tell who is right."""
        for packed in live.proofs.get(index, {}).values():
            try:
                statement = unpack(packed)
            except ProtocolError:
                continue  # who gave it is named only if a chunk has to be refused
            exchange: Exchange = live.exchange
            if statement.sha256 != sha256 and not self._attestor.fault(
                statement, exchange.name, exchange.chunk_size, index, self._clock()
            ):
                exchange.dispute(index, statement)

    def _mismatch(self, live: Live, index: int, data: bytes) -> None:
        """No attestation is for these bytes."""
        now = self._loop.time()
        if self._again(live, index):
            return
        if not self._believable(live, index):
            live.proofs.pop(index, None)
            live.provable.discard(index)
            live.landed[index] = now
            return
        asked, proofs = live.needs.setdefault(index, {}), live.proofs[index]
        claimants = self._owner.claimants(live, index)
        if not any(node in proofs for node in claimants):  # who only hands out attestations answers for nothing
            live.provable.discard(index)
            live.landed[index] = now
            return
        others = [node for node in claimants if node not in asked and node not in proofs]
        if others and len(asked) < _ASKED:
            asked[others[0]] = now
            self._owner.need(others[0], live, [index])
        if any(now - when < _ANSWER and node not in proofs for node, when in asked.items()):
            live.held[index] = (len(proofs), now + _ANSWER)
            return
        live.provable.discard(index)
        self._owner.refused(live, index, data)

    def _again(self, live: Live, index: int) -> bool:
        """A chunk is not right: the barrier that came may have been another one, so wait for one more; but once."""
        if index in live.doubtful:
            return False
        live.doubtful.add(index)
        live.provable.discard(index)
        live.came.add(index)
        return True

    def _believable(self, live: Live, index: int) -> bool:
        """Whether a member signed some attestation of the chunk; the others are dropped."""
        proofs = live.proofs.get(index, {})
        exchange: Exchange = live.exchange
        for node, packed in list(proofs.items()):
            try:
                statement = unpack(packed)
                fault = self._attestor.fault(statement, exchange.name, exchange.chunk_size, index, self._clock())
            except ProtocolError as error:
                fault = str(error)
            if fault is not None:
                del proofs[node]
                self._owner.misattested(live, index, node, fault)
        return bool(proofs)


def _read(scratch: int, source: int, cut: Cut, batch: list[int], have: int) -> list[tuple[int, bytes | bool]]:
    """Chunks from the scratch file; of those that are proved already only whether they are the same there."""
    return [
        (index, same_chunk(scratch, source, cut, index) if have >> index & 1 else read_chunk(scratch, cut, index))
        for index in batch
    ]


async def _feed(receiver: Receiver, data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(view), _SLICE):
        receiver.feed(view[start : start + _SLICE])
        if len(view) > _SLICE:
            await asyncio.sleep(0)
