"""Every chunk was proved and the whole digest is wrong: somebody attested what is not so. Who, and which chunks?

The chunks that others attested are read again from upstream, one signer's after the other's; this node's own reads
come last. As soon as a read differed from what was attested, the whole digest is tried again. Nobody is accused before
it holds: only then is it certain which of two statements was the false one. No chunk is read again twice, so that this
costs at most one more copy (docs/adr/0011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import structlog

from p2pdist.errors import DigestMismatch
from p2pdist.protocol import messages as wire
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.exchange import Exchange
from p2pdist.swarm.reader import UpstreamReader
from p2pdist.swarm.tracker import Tracker
from p2pdist.swarm.transfers import Transfer

_log = structlog.get_logger("p2pdist.swarm")
BAN = 600.0  # seconds that this node believes nothing of whom it caught; the tracker bans for longer, on more accusers


class Doubt:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        attestor: Attestor,
        tracker: Tracker,
        reader: UpstreamReader,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._attestor = attestor
        self._tracker = tracker
        self._reader = reader
        self._clock = clock

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
        for indexes in suspects(exchange, self._attestor.node):
            if not await self._differs(transfer, exchange, indexes):
                continue
            try:
                await exchange.commit(store)
            except DigestMismatch as again:
                error = again
                continue
            self._engine.add(exchange)
            return
        raise error

    async def _differs(self, transfer: Transfer, exchange: Exchange, indexes: list[int]) -> bool:
        """Read these chunks again; whether one is another one than it was."""
        before = {index: (exchange.sha256(index), exchange.witness(index)) for index in indexes}
        await self._reader.reread(transfer, exchange, indexes)
        differs = False
        for index, (sha256, witness) in before.items():
            if exchange.sha256(index) != sha256:
                differs = True
                if witness is not None:
                    exchange.dispute(index, witness)
        return differs

    def judge(self, exchange: Exchange) -> None:
        """The whole digest is proved: whoever attested something else of it lied, by its own signature."""
        liars = {
            attestation.signer.node: index
            for index, attestation in exchange.disputes
            if attestation.sha256 != exchange.sha256(index)
        }
        for node, index in liars.items():
            if node == self._attestor.node:
                continue  # the upstream's bytes were wrong when they were read here
            _log.error("a false attestation", signer=node.hex(), digest=exchange.name, chunk=index)
            self._tracker.send(wire.Accuse(node, exchange.name, index))
            self._attestor.ban(node, self._clock() + BAN)
            self._engine.ban(node, BAN)


def suspects(exchange: Exchange, own: bytes) -> list[list[int]]:
    """The chunks by who attested them: those already contradicted first, then whose are fewest, `own` reads last."""
    by_signer: dict[bytes, list[int]] = defaultdict(list)
    for index in range(exchange.count):
        witness = exchange.witness(index)
        by_signer[own if witness is None else witness.signer.node].append(index)
    contradicted = {index for index, _ in exchange.disputes}

    def rank(signer: bytes) -> tuple[bool, bool, int]:
        return signer == own, contradicted.isdisjoint(by_signer[signer]), len(by_signer[signer])

    return [by_signer[signer] for signer in sorted(by_signer, key=rank)]
