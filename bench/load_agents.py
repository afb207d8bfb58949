"""Played agents: they say to a tracker what real ones say during a rollout, and move no bytes.

An agent asks for the tag and the manifest, joins the rollout of the image's layers, reads what it is leased in a
modelled time, and is done with a layer a little after somebody has read its last chunk: the mesh is taken as perfect.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from load_socket import Socket

from p2pdist.protocol import attest, limits
from p2pdist.protocol import messages as wire

CHUNK = 64 * 1024  # bytes, as the agents want it; nothing is moved, so it doesn't matter
REGISTRY = "registry.example"
SHA256, SIGNATURE = bytes(32), bytes(64)
MANIFEST = b"m" * 3000


@dataclass(frozen=True)
class Image:
    """What is rolled out: `layers` blobs of `chunks` chunks each, for the `number`-th time in this run."""

    number: int
    layers: int
    chunks: int
    seed: str

    def name(self, what: object) -> str:
        return "sha256:" + hashlib.sha256(f"{self.seed} {self.number} {what}".encode()).hexdigest()

    @property
    def digests(self) -> list[str]:
        return [self.name(layer) for layer in range(self.layers)]


@dataclass
class Watch:
    """What all agents of a process have seen; times in seconds."""

    joins: list[float]
    asks: list[float]
    pings: list[float]
    sent: Counter[str]
    received: Counter[str]
    frames: int = 0
    driver_lag: float = 0.0


class Rollout:
    """One image's rollout as this process sees it: which chunks were read here, which layers are whole everywhere."""

    def __init__(self, image: Image, share: Sequence[int], half_seconds: float, lag: float) -> None:
        self.image = image
        self.digests = image.digests
        self.layer_of = {digest: layer for layer, digest in enumerate(self.digests)}
        self.read = share  # chunks of each layer that this process's agents have read: shared memory
        self.whole: set[str] = set()  # layers that were read to the end
        self.half_seconds = half_seconds  # from a lease to the half of its chunk
        self.lag = lag  # seconds within which all agents have a layer after it is whole
        self.manifest = "sha256:" + hashlib.sha256(MANIFEST + image.name("manifest").encode()).hexdigest()
        self.data = MANIFEST + image.name("manifest").encode()


class Agent:
    """One played agent, from Hello to the end of the run."""

    def __init__(self, number: int, watch: Watch, rng: random.Random, on_done: Callable[[Agent], None]) -> None:
        self.welcomed: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # the session's timeout
        self.lost = ""
        self._key = Ed25519PrivateKey.generate()
        self._node = self._key.public_key().public_bytes_raw()
        self._number = number
        self._watch = watch
        self._rng = rng
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._queue: list[wire.FromAgent] = []
        self._rollout: Rollout | None = None
        self._waiting: set[str] = set()
        self._stream: dict[str, int] = {}  # chunks read of layers that this agent reads alone
        self._recalled: set[str] = set()
        self._pinged = 0.0  # when; 0: no answer is waited for
        self._joined_at = 0.0
        self._joined = False
        self._asked_at: dict[int, float] = {}
        self.socket = Socket(self._frame, self._gone)

    @property
    def key(self) -> Ed25519PrivateKey:
        return self._key

    def say(self, message: wire.FromAgent) -> None:
        """Leaves with this loop turn's frame, as a real agent's messages do."""
        self._watch.sent[type(message).__name__] += 1
        if not self._queue:
            self._loop.call_soon(self._flush)
        self._queue.append(message)

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        if not self.lost:
            self._watch.frames += 1
            self.socket.send(wire.encode(queue))

    def ping(self) -> None:
        """Unless the last one isn't answered yet: how long that takes is measured all the same."""
        if not self._pinged:
            self._pinged = time.perf_counter()
            self.say(wire.Ping())

    def _gone(self, why: str) -> None:
        self.lost = why
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(why))

    # --- a rollout ---

    def start(self, rollout: Rollout) -> None:
        """Ask for tag and manifest; the join follows."""
        self._rollout, self._joined = rollout, False
        self._waiting = set(rollout.digests)
        self._ask(2 * rollout.image.number, f"tag {REGISTRY}/image:{rollout.image.number}")

    def _ask(self, number: int, key: str) -> None:
        self._asked_at[number] = time.perf_counter()
        self.say(wire.Ask(number, key))

    def _answered(self, number: int) -> None:
        asked = self._asked_at.pop(number, None)
        rollout = self._rollout
        if asked is None or rollout is None:
            return
        self._watch.asks.append(time.perf_counter() - asked)
        if number % 2 == 0:
            self._ask(number + 1, f"manifest {REGISTRY}/image@{rollout.manifest}")
            return
        size = rollout.image.chunks * CHUNK
        self._joined_at = time.perf_counter()
        self.say(
            wire.Join(
                rollout.image.name("image"), REGISTRY, [wire.Want(digest, size, CHUNK) for digest in rollout.digests]
            )
        )

    def layer_whole(self, digest: str) -> None:
        """Somebody has read the last chunk: soon this agent has all, if it takes part yet."""
        if self._rollout is None or not self._joined:
            return
        self._loop.call_later(self._rng.uniform(0, self._rollout.lag), self._done, digest)

    def _done(self, digest: str) -> None:
        if digest in self._waiting:
            self._waiting.discard(digest)
            self.say(wire.Done(digest))
            if not self._waiting:
                self._on_done(self)

    # --- what the tracker says ---

    def _frame(self, frame: bytes) -> None:
        for message in wire.decode_from_tracker(frame):
            self._watch.received[type(message).__name__] += 1
            self._heard(message)

    def _heard(self, message: wire.FromTracker) -> None:
        now = time.perf_counter()
        match message:
            case wire.Challenge():
                proof = self._key.sign(attest.hello_bytes(message.nonce))
                self.say(wire.Hello(limits.VERSION, self._node, proof, f"n{self._number}", "", 5051))
            case wire.Welcome():
                if not self.welcomed.done():
                    self.welcomed.set_result(message.session_timeout)
                    self.say(wire.Holds(["sha256:" + hashlib.sha256(str(n).encode()).hexdigest() for n in range(20)]))
            case wire.Pong():
                self._watch.pings.append(now - self._pinged)
                self._pinged = 0.0
            case wire.Fetch():
                rollout = self._rollout
                assert rollout is not None
                media_type = "application/vnd.oci.image.manifest.v1+json"
                self.say(wire.Offer(message.key, rollout.manifest, media_type, len(rollout.data), rollout.data))
                self._answered(message.id)
            case wire.Content():
                self._answered(message.id)
            case wire.Joined():
                self._watch.joins.append(now - self._joined_at)
                self._joined = True
                for digest in self._rollout.whole if self._rollout is not None else ():
                    self.layer_whole(digest)
            case wire.Lease():
                self._leased(message)
            case wire.Recall():
                if message.digest in self._stream:
                    self._recalled.add(message.digest)
                else:
                    self._returned(message.digest, 0)
            case wire.Rejected():
                self._gone(message.reason)

    def _leased(self, lease: wire.Lease) -> None:
        rollout = self._rollout
        if rollout is None or lease.digest not in rollout.layer_of:
            return
        if lease.alone:
            self._recalled.discard(lease.digest)
            self._stream[lease.digest] = lease.first
            self._loop.call_later(rollout.half_seconds / 4, self._streamed, rollout, lease.digest)
            return
        for step in range(lease.count):
            begins = 2 * step * rollout.half_seconds
            self._loop.call_later(begins + rollout.half_seconds, self._half, lease.digest, lease.first + step)
            self._loop.call_later(
                begins + 2 * rollout.half_seconds, self._got, rollout, lease.digest, lease.first + step
            )

    def _half(self, digest: str, index: int) -> None:
        self.say(wire.Half(digest, index))

    def _got(self, rollout: Rollout, digest: str, index: int) -> None:
        rollout.read[rollout.layer_of[digest]] += 1  # type: ignore[index]
        self.say(wire.Got(digest, index, SHA256, SIGNATURE))

    def _streamed(self, rollout: Rollout, digest: str) -> None:
        """One more chunk of a layer that is read alone."""
        self._stream[digest] += 1
        rollout.read[rollout.layer_of[digest]] += 1  # type: ignore[index]
        if digest in self._recalled:
            self._recalled.discard(digest)
            self._returned(digest, self._stream.pop(digest))
        elif self._stream[digest] < rollout.image.chunks:
            self._loop.call_later(rollout.half_seconds / 4, self._streamed, rollout, digest)
        else:
            del self._stream[digest]

    def _returned(self, digest: str, read: int) -> None:
        self.say(wire.Returned(digest, ((1 << read) - 1).to_bytes((read + 7) // 8, "little")))
