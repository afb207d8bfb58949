"""One blob as its swarm sees it here: its chunks, what is proved, and who said so.

Engines and leases bring bytes through a `Receiver`; `Exchange.prove` is the only way a chunk becomes servable.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pdist.errors import DigestMismatch, PeerError, SignerRefused, StorageError
from p2pdist.oci import Digest
from p2pdist.protocol.chunks import chunk_count, chunk_range
from p2pdist.protocol.messages import Attestation
from p2pdist.swarm.attest import Attestor, pack, unpack
from p2pdist.swarm.receiver import Receiver

if TYPE_CHECKING:
    from p2pdist.store import BlobFile, Staging, Store

__all__ = ["Exchange", "Receiver"]

_DISPUTES = 1024  # remembered statements that contradict what is proved here
_CONTRADICTIONS = 16  # remembered pairs of statements that contradict each other


class Exchange:
    """The chunks of one blob on this node, while it is fetched (a staging) and while it is served (a blob file)."""

    def __init__(
        self,
        digest: Digest,
        size: int,
        chunk_size: int,
        attestor: Attestor,
        clock: Callable[[], float],
        *,
        staging: Staging | None = None,
        blob: BlobFile | None = None,
    ) -> None:
        self.digest = digest
        self.name = str(digest)
        self.size = size
        self.chunk_size = chunk_size
        self.count = chunk_count(size, chunk_size)
        self.full = (1 << self.count) - 1
        self.sources: Counter[bytes] = Counter()  # bytes that were proved, by the peer that sent them
        self.failure: Exception | None = None
        self.doubted: DigestMismatch | None = None  # every chunk was proved, and the whole digest was wrong
        self.doubts = 0  # how often: what was read before may be tainted
        self.listeners: list[Callable[[Exchange, int], None]] = []
        self.on_broken: Callable[[Exchange, StorageError], None] | None = None  # the disk failed under an engine
        self._attestor = attestor
        self._clock = clock
        self._staging = staging
        self._blob = blob
        self._direct: dict[int, Receiver] = {}
        self._signed: dict[int, bytes] = {}
        self._hashes: dict[int, bytes] = {}  # sha256 of chunks of a stored blob, where they are known
        self._disputes: dict[tuple[int, bytes], Attestation] = {}
        self._refused: set[tuple[int, bytes]] = set()  # chunks and hashes that are not taken once more
        self.contradictions: list[tuple[int, Attestation, Attestation]] = []  # one signer, one chunk, two hashes
        self._pulse = asyncio.Event()

    # --- state ---------------------------------------------------------------------------------------------------

    @property
    def have(self) -> int:
        """Bitmask of proved chunks."""
        if self._blob is not None:
            return self.full
        return self._staging.have if self._staging is not None else 0

    @property
    def whole(self) -> bool:
        """Every chunk is proved (the blob's own digest perhaps not yet)."""
        return self.have == self.full

    @property
    def stored(self) -> bool:
        """The whole digest is proved."""
        return self._blob is not None

    @property
    def fd(self) -> int:
        """The file that proved chunks are sent from."""
        source = self._blob if self._blob is not None else self._staging
        if source is None:
            raise StorageError(f"{self.name} is closed")
        return source.fd

    def length(self, index: int) -> int:
        """Bytes of chunk `index`."""
        start, end = chunk_range(index, self.size, self.chunk_size)
        return end - start

    def bitmap(self) -> bytes:
        """`have` as it travels: little endian."""
        return self.have.to_bytes((self.count + 7) // 8, "little")

    async def changed(self) -> None:
        """Returns after the next chunk is proved, or the state changes otherwise."""
        await self._pulse.wait()

    def pulse(self) -> None:
        """Wake everyone who waits for a change."""
        self._pulse.set()
        self._pulse = asyncio.Event()

    def fail(self, error: Exception) -> None:
        """The exchange is over; everyone who waits learns why."""
        if self.failure is None:
            self.failure = error
        self.pulse()

    def broken(self, error: StorageError) -> None:
        """The disk failed while an engine wrote."""
        if self.on_broken is not None:
            self.on_broken(self, error)

    # --- receiving -----------------------------------------------------------------------------------------------

    def receive(self, index: int) -> Receiver:
        """A receiver for chunk `index`."""
        direct = index not in self._direct and not self.have >> index & 1
        receiver = Receiver(self, index, direct)
        if direct:
            self._direct[index] = receiver
        return receiver

    def closed(self, receiver: Receiver) -> None:
        """`receiver` takes no more bytes."""
        if self._direct.get(receiver.index) is receiver:
            del self._direct[receiver.index]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Bytes of an unproved chunk into the staging file."""
        if self._staging is not None:
            self._staging.write(offset, data)

    def prove(self, receiver: Receiver, attestation: Attestation, peer: bytes) -> bool:
        """Accept the chunk that `receiver` took from `peer` if a member attests just these bytes.

        True: it is proved now. False: it was there already. PeerError: it is refused, and why; SignerRefused if that
        is no fault of `peer`'s.
        """
        receiver.close()
        index = receiver.index
        got = receiver.digest()
        if got != attestation.sha256:
            raise PeerError(
                f"chunk {index} of {self.name}: attested sha256 {attestation.sha256.hex()}, got {got.hex()}",
                peer=peer.hex(),
            )
        if (index, got) in self._refused:
            raise SignerRefused(f"chunk {index} of {self.name} is known to be false so", peer=peer.hex())
        fault = self._attestor.fault(attestation, self.name, self.chunk_size, index, self._clock())
        if fault is not None:
            kind = PeerError if self._attestor.believes(attestation.signer, self._clock()) else SignerRefused
            raise kind(f"chunk {index} of {self.name}: the attestation is refused: {fault}", peer=peer.hex())
        if self._accept(receiver, got, pack(attestation)):
            self.sources[peer] += self.length(index)
            return True
        if self.sha256(index) != got:
            self.dispute(index, attestation)
        return False

    def prove_read(self, receiver: Receiver) -> bytes:
        """Accept a chunk that this node read from upstream under a lease. Returns its sha256."""
        receiver.close()
        got = receiver.digest()
        self._accept(receiver, got, b"")
        return got

    def _accept(self, receiver: Receiver, sha256: bytes, evidence: bytes) -> bool:
        index = receiver.index
        if self._staging is None or self.have >> index & 1:
            return False
        receiver.flush()
        self._staging.prove(index, sha256, evidence)
        for listener in tuple(self.listeners):
            listener(self, index)
        self.pulse()
        return True

    # --- doubt ---------------------------------------------------------------------------------------------------

    def sha256(self, index: int) -> bytes | None:
        """Of chunk `index` as it was proved; None if it isn't. Hashes the chunk, blocking, once the blob is stored."""
        if self._staging is not None:
            record = self._staging.evidence(index)
            return None if record is None else record[0]
        known = self._hashes.get(index)
        if known is None:
            known = self._hashes[index] = self._hash_range(*chunk_range(index, self.size, self.chunk_size))
        return known

    def witness(self, index: int) -> Attestation | None:
        """Who else attested chunk `index`; None where this node read it itself, or nobody did."""
        record = self._staging.evidence(index) if self._staging is not None else None
        return unpack(record[1]) if record is not None and record[1] else None

    def dispute(self, index: int, attestation: Attestation) -> None:
        """A member's statement that contradicts what is proved here: one of the two is false."""
        witness = self.witness(index)
        room = len(self.contradictions) < _CONTRADICTIONS
        if room and witness is not None and _contradict(witness, attestation):
            self.contradictions.append((index, witness, attestation))
        if len(self._disputes) < _DISPUTES:
            self._disputes[index, attestation.signer.node] = attestation

    @property
    def disputes(self) -> list[tuple[int, Attestation]]:
        """Chunks and the statements that contradict, or contradicted, what is proved of them."""
        return [(index, attestation) for (index, _), attestation in self._disputes.items()]

    def doubt(self, error: DigestMismatch) -> None:
        """The whole digest is wrong: whoever streamed from here must stop."""
        self.doubted = error
        self.taint()

    def taint(self) -> None:
        """Chunks that were proved are given up: whoever streamed from here may have got false ones, and must stop."""
        self.doubts += 1
        self.pulse()

    def refuse(self, index: int) -> None:
        """Chunk `index` as it is proved now is false, somebody says: the same bytes are not taken from a peer again."""
        sha256 = self.sha256(index)
        if sha256 is not None:
            self._refused.add((index, sha256))

    def relent(self, index: int, sha256: bytes) -> None:
        """These bytes of chunk `index` are taken again: it is not certain that they are the false ones."""
        self._refused.discard((index, sha256))

    def forget(self, index: int) -> None:
        """Chunk `index` turned out wrong."""
        if self._staging is not None:
            self._staging.forget(index)
        self._signed.pop(index, None)

    # --- giving --------------------------------------------------------------------------------------------------

    def attestation(self, index: int) -> bytes | None:
        """The packed attestation to send with chunk `index`; this node's own where nobody else's is known.

        None while this node is no member and has none from others.
        """
        packed = self._signed.get(index)
        if packed is not None:
            return packed
        sha256: bytes | None = None
        if self._staging is not None:
            record = self._staging.evidence(index)
            if record is None:
                return None
            sha256, evidence = record
            if evidence:  # expired perhaps, and useless then: what others read is for them to sign, until it is proved
                self._signed[index] = evidence
                return evidence
        if sha256 is None:
            sha256 = self.sha256(index)
        if sha256 is None:
            return None
        own = self._attestor.sign(self.name, self.chunk_size, index, sha256)
        if own is None:
            return None
        packed = self._signed[index] = pack(own)
        return packed

    def _hash_range(self, start: int, end: int) -> bytes:
        hasher = hashlib.sha256()
        while start < end:
            data = os.pread(self.fd, min(256 * 1024, end - start), start)
            if not data:
                raise StorageError(f"{self.name} ends at byte {start}, {end} expected")
            hasher.update(data)
            start += len(data)
        return hasher.digest()

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes of proved chunks."""
        return os.pread(self.fd, length, offset)

    # --- the end -------------------------------------------------------------------------------------------------

    async def commit(self, store: Store) -> None:
        """Prove the whole digest and go on from the stored blob. DigestMismatch leaves the staging as it is."""
        staging = self._staging
        if staging is None:
            return
        await staging.commit()
        blob = await store.open_blob(self.digest)
        if blob is None:
            raise StorageError(f"{self.name} was proved and can't be read again")
        # Whoever asks now gets this node's own attestations: without hashing every chunk once more.
        proofs = ((index, staging.evidence(index)) for index in range(self.count))
        self._hashes = {index: proof[0] for index, proof in proofs if proof is not None}
        self._blob, self._staging, self.doubted = blob, None, None
        self.pulse()
        await staging.close()

    async def close(self, *, keep: bool = True) -> None:
        """Let go of the files; `keep`: a partial stays on disk for a later start."""
        if self._staging is not None:
            await (self._staging.close() if keep else self._staging.abandon())
        if self._blob is not None:
            self._blob.close()
        self.fail(self.failure or StorageError(f"{self.name} is closed"))


def _contradict(one: Attestation, other: Attestation) -> bool:
    return one.signer.node == other.signer.node and one.sha256 != other.sha256
