"""Agents as far as the tracker can see them: they read what they are told to, and chunks spread among them."""

from __future__ import annotations

from tracker_driver import CHUNK, REGISTRY, Driver, digest, node_id

from p2pdist.protocol import messages as wire


class Agents:
    """Up to `blobs` blobs of `chunks` chunks; each agent is a number. The mesh is perfect, reads take a turn."""

    def __init__(self, driver: Driver, chunks: int = 12) -> None:
        self.driver = driver
        self.chunks = chunks
        self.full = (1 << chunks) - 1
        self.have: dict[int, dict[str, int]] = {}  # by agent and blob, of those connected
        self.wants: dict[int, set[str]] = {}
        self.jobs: list[tuple[int, str, int]] = []  # leased chunks not read yet
        self.streams: set[tuple[int, str]] = set()
        self.reads: list[tuple[str, int]] = []  # (blob, chunk) read from upstream
        self._heard = len(driver.said)

    def join(self, number: int, blobs: list[str], rollout: str = "image") -> None:
        driver = self.driver
        if number not in self.have:
            driver.connect(number)
            self.have[number], self.wants[number] = {}, set()
        mine = self.have[number]
        blobs = [blob for blob in blobs if mine.get(blob, 0) != self.full]
        if not blobs:
            return
        self.wants[number] |= set(blobs)
        wants = [
            wire.Want(
                digest(blob), self.chunks * CHUNK, CHUNK, mine.get(blob, 0).to_bytes(self.chunks // 8 + 1, "little")
            )
            for blob in blobs
        ]
        driver.say(number, wire.Join(digest(rollout), REGISTRY, wants))
        self.listen()

    def crash(self, number: int) -> None:
        """The agent is gone with all it had."""
        if number in self.have:
            del self.have[number], self.wants[number]
            self.jobs = [job for job in self.jobs if job[0] != number]
            self.streams = {stream for stream in self.streams if stream[0] != number}
            self.driver.disconnect(number)
            self.listen()

    def leave(self, number: int, blob: str) -> None:
        if blob in self.wants.get(number, ()):
            self.wants[number].discard(blob)
            self.jobs = [job for job in self.jobs if job[:2] != (number, blob)]
            self.streams.discard((number, blob))
            self.driver.say(number, wire.Leave(digest(blob)))
            self.listen()

    def listen(self) -> None:
        """Take in what the tracker said."""
        names = {digest(blob): blob for wants in self.wants.values() for blob in wants}
        heard, self._heard = self._heard, len(self.driver.said)
        for number, message in self.driver.said[heard : self._heard]:
            blob = names.get(getattr(message, "digest", ""))
            if blob is None or blob not in self.wants.get(number, ()):
                continue
            if isinstance(message, wire.Lease) and message.alone:
                self.streams.add((number, blob))
            elif isinstance(message, wire.Lease):
                self.jobs += [(number, blob, message.first + step) for step in range(message.count)]
            elif isinstance(message, wire.Recall) and (number, blob) in self.streams:
                self.streams.discard((number, blob))
                have = self.have[number].get(blob, 0).to_bytes(self.chunks // 8 + 1, "little")
                self.driver.say(number, wire.Returned(digest(blob), have))
                self.listen()
            elif isinstance(message, wire.Gone):
                self.wants[number].discard(blob)

    def read(self, place: int) -> None:
        """One of the leased chunks arrives."""
        if self.jobs:
            number, blob, index = self.jobs.pop(place % len(self.jobs))
            if not self.have[number].get(blob, 0) >> index & 1:
                self.reads.append((blob, index))
            self._gain(number, blob, 1 << index)
            if blob in self.wants[number]:
                self.driver.half(number, blob, index)
                self.driver.got(number, blob, index)
            self._finish(number, blob)

    def stream(self) -> None:
        """Every stream reads a chunk."""
        for number, blob in sorted(self.streams):
            missing = self.full & ~self.have[number].get(blob, 0)
            if missing:
                index = (missing & -missing).bit_length() - 1
                self.reads.append((blob, index))
                self._gain(number, blob, 1 << index)
            self._finish(number, blob)

    def fail(self, place: int, status: int, final: bool) -> None:
        """A read fails."""
        if self.jobs:
            number, blob, index = self.jobs.pop(place % len(self.jobs))
            self.driver.failed(number, blob, index, status, final)
            self.listen()

    def lose(self, place: int) -> None:
        """A read hangs for ever."""
        if self.jobs:
            self.jobs.pop(place % len(self.jobs))

    def spread(self) -> None:
        """What one connected agent has, those who want it get."""
        for blob in sorted({blob for wants in self.wants.values() for blob in wants}):
            everything = 0
            for mine in self.have.values():
                everything |= mine.get(blob, 0)
            for number in sorted(self.wants):
                if blob in self.wants[number]:
                    self._gain(number, blob, everything)
                    self._finish(number, blob)

    def miss(self, number: int) -> None:
        """The agent says what it lacks and nobody has."""
        for blob in sorted(self.wants.get(number, ())):
            missing = self.full & ~self.have[number].get(blob, 0)
            if missing and (number, blob) not in self.streams:
                indexes = [index for index in range(self.chunks) if missing >> index & 1]
                self.driver.miss(number, blob, *indexes)
        self.listen()

    def dead(self, number: int, peer: int) -> None:
        if number in self.have:
            self.driver.say(number, wire.Dead(node_id(peer)))
            self.listen()

    def drop(self, number: int, blob: str) -> None:
        """A whole blob is evicted."""
        if self.have.get(number, {}).get(blob) == self.full and blob not in self.wants[number]:
            del self.have[number][blob]
            self.driver.say(number, wire.Drops([digest(blob)]))
            self.listen()

    def pass_time(self, seconds: float) -> None:
        self.driver.later(seconds)
        self.listen()

    def _gain(self, number: int, blob: str, chunks: int) -> None:
        mine = self.have[number]
        mine[blob] = mine.get(blob, 0) | chunks

    def _finish(self, number: int, blob: str) -> None:
        if self.have[number].get(blob, 0) == self.full and blob in self.wants[number]:
            self.wants[number].discard(blob)
            self.streams.discard((number, blob))
            self.jobs = [job for job in self.jobs if job[:2] != (number, blob)]
            self.driver.done(number, blob)
        self.listen()

    @property
    def unfinished(self) -> list[tuple[int, str]]:
        return [(number, blob) for number in sorted(self.wants) for blob in sorted(self.wants[number])]
