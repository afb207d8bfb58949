"""A false statement is proved with the blob itself: whoever accuses shows it, piece by piece, and it is hashed. Pure.

A statement says: chunk k of digest D hashes to h, signed by node X. Bytes that hash to D whose chunk k does not hash
to h prove that it is false, and X's signature who said so; nobody has to be believed (docs/adr/0032). The accuser is
asked for them, because a tracker can't read from upstream. What an accuser shows to no purpose costs it its voice.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import msgspec

from p2pdist.errors import InvalidDigest
from p2pdist.oci import Digest
from p2pdist.protocol import attest, limits, messages
from p2pdist.protocol.chunks import chunk_count, chunk_range, valid_chunk_size
from p2pdist.protocol.messages import Attestation, Convict
from tracker.timers import Outbox, Timers

MOST_TRIALS = 4  # at once: each hashes what one accuser shows
TRIALS_OF_ONE = 2  # accusers of one node that are heard at once: a friend of the liar's may be slow
MOST_WAITING = 256  # accusations that wait for their turn
PATIENCE = 15.0  # seconds for a piece
LEAST_RATE = 128 * 1024  # bytes a second: an accuser that shows the blob more slowly is not heard to the end ...
FAIR_RATE = 2 * 1024 * 1024  # ... and one more slowly than this only as long as no other waits


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a trial: anybody who has the cluster's key and the blob can try it again.

    `truth`: sha256 of the chunk in the blob; empty where `other`, another statement of the signer's, is the proof.
    """

    digest: str
    size: int
    chunk_size: int
    index: int
    statement: Attestation
    truth: bytes
    other: Attestation | None = None

    def pack(self) -> bytes:
        """The stored form."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpack(cls, data: bytes) -> Proof:
        """The reverse of `pack`; msgspec.DecodeError if it is none."""
        return msgspec.msgpack.decode(data, type=cls)

    def __str__(self) -> str:
        signed = (
            f"it signed that chunk {self.index} of {self.digest}, in chunks of {self.chunk_size} bytes, has sha256 "
            f"{self.statement.sha256.hex()} (signature {self.statement.signature.hex()})"
        )
        if self.other is not None:
            return f"{signed}, and also {self.other.sha256.hex()} (signature {self.other.signature.hex()})"
        return f"{signed}; it is {self.truth.hex()}"

    def holds(self, cluster_key: bytes) -> bool:
        """Whether the signatures are those of a member of this cluster, and the statements contradict the truth.

        That `truth` is true is what the trial has found; only the blob itself proves it again.
        """
        if not _valid(cluster_key, self.digest, self.chunk_size, self.index, self.statement):
            return False
        if self.other is None:
            return self.truth != self.statement.sha256
        return (
            self.other.signer.node == self.statement.signer.node
            and self.other.sha256 != self.statement.sha256
            and _valid(cluster_key, self.digest, self.chunk_size, self.index, self.other)
        )


def _valid(cluster_key: bytes, digest: str, chunk_size: int, index: int, statement: Attestation) -> bool:
    """Signed by a node that was a member once: a lie doesn't expire."""
    signer = statement.signer
    member = attest.membership_bytes(signer.node, signer.expires)
    signed = attest.attestation_bytes(digest, chunk_size, index, statement.sha256)
    return attest.signature_holds(cluster_key, signer.signature, member) and attest.signature_holds(
        signer.node, statement.signature, signed
    )


class _Trial:
    """One accuser shows the blob. `offset`: bytes hashed so far."""

    def __init__(self, accuser: bytes, charge: Convict, now: float) -> None:
        digest = Digest.parse(charge.digest)
        self.accuser = accuser
        self.accused = charge.statement.signer.node
        self.charge = charge
        self.began = now
        self.deadline = now + PATIENCE + charge.size / LEAST_RATE
        self.waits_until = 0.0
        self.offset = 0
        self.over = False
        self._digest = digest
        self._whole = digest.hasher()
        self._chunk = hashlib.sha256()
        self._range = chunk_range(charge.index, charge.size, charge.chunk_size)

    @property
    def wanted(self) -> int:
        """Bytes of the next piece; 0: it is whole."""
        return min(limits.PIECE_SHOWN, self.charge.size - self.offset)

    def yields_to(self, other: Convict, now: float) -> bool:
        """It had its fair time; or some of it, and the other one takes far less."""
        had = now - self.began - PATIENCE
        return had >= 0 and (had >= self.charge.size / FAIR_RATE or other.size <= self.charge.size / 2)

    def feed(self, data: bytes) -> None:
        """The next piece."""
        self._whole.update(data)
        start, end = (max(0, min(len(data), edge - self.offset)) for edge in self._range)
        self._chunk.update(memoryview(data)[start:end])
        self.offset += len(data)

    def proof(self) -> Proof | None:
        """What was shown proves the charge; None: it doesn't."""
        charge, truth = self.charge, self._chunk.digest()
        if self._whole.hexdigest() != self._digest.hex or truth == charge.statement.sha256:
            return None
        return Proof(charge.digest, charge.size, charge.chunk_size, charge.index, charge.statement, truth)


class Trials:
    """`guilty(now, proof, out)` is called for each proved lie, `mute(now, accuser)` for each accusation that wasn't."""

    def __init__(
        self,
        cluster_key: bytes,
        timers: Timers,
        guilty: Callable[[float, Proof, Outbox], None],
        mute: Callable[[float, bytes], None],
    ) -> None:
        self._cluster_key = cluster_key
        self._timers = timers
        self._guilty = guilty
        self._mute = mute
        self._running: dict[bytes, _Trial] = {}  # by accuser
        self._waiting: OrderedDict[tuple[bytes, bytes], Convict] = OrderedDict()  # by accused and accuser
        self.proved = 0
        self.failed = 0
        self.shown = 0  # bytes hashed

    def charge(self, now: float, accuser: bytes, charge: Convict, out: Outbox) -> None:
        """A node accuses another, with its signed statement."""
        try:
            digest = Digest.parse(charge.digest)
        except InvalidDigest:
            return
        if not valid_chunk_size(charge.size, charge.chunk_size) or not _in_blob(charge):
            return
        proof = Proof(charge.digest, charge.size, charge.chunk_size, charge.index, charge.statement, b"", charge.other)
        if not _valid(self._cluster_key, charge.digest, charge.chunk_size, charge.index, charge.statement):
            self._dismissed(now, accuser)
        elif charge.other is not None:
            if proof.holds(self._cluster_key):
                self._proved(now, proof, out)
            else:
                self._dismissed(now, accuser)
        elif digest.algorithm == "sha256" and chunk_count(charge.size, charge.chunk_size) == 1:
            proof = msgspec.structs.replace(proof, truth=bytes.fromhex(digest.hex))  # the chunk is the blob
            if proof.holds(self._cluster_key):
                self._proved(now, proof, out)
            else:
                self._dismissed(now, accuser)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting[charge.statement.signer.node, accuser] = charge
            self._next(now, out)

    def shown_by(self, now: float, accuser: bytes, message: messages.Shown, out: Outbox) -> None:
        """A piece of the blob."""
        trial = self._running.get(accuser)
        if trial is None or message.digest != trial.charge.digest:
            return
        if message.offset != trial.offset or len(message.data) != trial.wanted:
            self._end(now, trial, out)  # it has the blob no more: nothing is proved, and nothing held against it
            return
        self.shown += len(message.data)
        trial.feed(message.data)
        if trial.wanted:
            self._ask(now, trial, out)
            self._next(now, out)  # perhaps it has had its time
            return
        proof = trial.proof()
        if proof is not None:
            self._proved(now, proof, out)
        else:
            self._dismissed(now, accuser)
            self._end(now, trial, out)

    def gone(self, now: float, node: bytes, out: Outbox) -> None:
        """A node's session is over."""
        for accused, accuser in [key for key in self._waiting if key[1] == node]:
            del self._waiting[accused, accuser]
        trial = self._running.get(node)
        if trial is not None:
            self._end(now, trial, out)

    def banned(self, now: float, node: bytes, out: Outbox) -> None:
        """Nothing has to be proved of it any more."""
        for accused, accuser in [key for key in self._waiting if key[0] == node]:
            del self._waiting[accused, accuser]
        for trial in [one for one in self._running.values() if one.accused == node]:
            self._end(now, trial, out)

    def _proved(self, now: float, proof: Proof, out: Outbox) -> None:
        self.proved += 1
        self._guilty(now, proof, out)
        self.banned(now, proof.statement.signer.node, out)

    def _dismissed(self, now: float, accuser: bytes) -> None:
        self.failed += 1
        self._mute(now, accuser)

    def _next(self, now: float, out: Outbox) -> None:
        """Those that wait, the smallest blob first; who had his time makes room, and begins again later."""
        for (accused, accuser), charge in sorted(self._waiting.items(), key=lambda item: item[1].size):
            if accuser in self._running:
                continue
            same = [trial for trial in self._running.values() if trial.accused == accused]
            if len(same) >= TRIALS_OF_ONE or len(self._running) >= MOST_TRIALS:
                rivals = same if len(same) >= TRIALS_OF_ONE else list(self._running.values())
                longest = min(rivals, key=lambda trial: trial.began)
                if not longest.yields_to(charge, now):
                    continue
                longest.over = True
                del self._running[longest.accuser]
                self._waiting[longest.accused, longest.accuser] = longest.charge
            del self._waiting[accused, accuser]
            trial = _Trial(accuser, charge, now)
            self._running[accuser] = trial
            self._ask(now, trial, out)

    def _ask(self, now: float, trial: _Trial, out: Outbox) -> None:
        trial.waits_until = min(now + PATIENCE, trial.deadline)
        self._timers.at(trial.waits_until, partial(self._late, trial, trial.waits_until))
        out.append((trial.accuser, messages.Show(trial.charge.digest, trial.offset, trial.wanted)))

    def _late(self, trial: _Trial, asked: float, now: float, out: Outbox) -> None:
        if not trial.over and trial.waits_until == asked:
            if asked < trial.deadline:  # silent; else only slow
                self._dismissed(now, trial.accuser)
            self._end(now, trial, out)

    def _end(self, now: float, trial: _Trial, out: Outbox) -> None:
        trial.over = True
        if self._running.get(trial.accuser) is trial:
            del self._running[trial.accuser]
        self._next(now, out)


def _in_blob(charge: Convict) -> bool:
    return charge.size > 0 and charge.index < chunk_count(charge.size, charge.chunk_size)
