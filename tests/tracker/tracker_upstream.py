"""A rollout read from one upstream registry, on the driver's clock: nodes, slow ones, and some that mean harm."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tracker_driver import Driver, digest

from p2pdist.protocol import messages as wire

LAG = 0.02  # seconds of every message
LIE = 0.01  # seconds after which a liar says that it has read a chunk


class Rollout:
    """Nodes 1 to `nodes` join in that order, honest ones `wait` seconds later than the others.

    Each chunk that is read is everybody's at once.

    The registry gives `rate` chunks a second in the order in which they are asked for, each no sooner than after
    `first` seconds; from `stall[0]` to `stall[1]` it gives nothing. A node in `slow` waits so many seconds more.
    `kinds` of other nodes: "silent" sits on its leases; "drips" says half just before ten seconds are over, and no
    more; "lies" says at once that it has read what it was to read.
    """

    def __init__(
        self,
        nodes: int,
        chunks: int,
        kinds: Mapping[int, str] | None = None,
        *,
        rate: float = 32.0,
        first: float = 0.0,
        slow: Mapping[int, float] | None = None,
        wait: float = 0.0,
        stall: tuple[float, float] = (0.0, 0.0),
        seed: int = 1,
        **rules: float,
    ) -> None:
        self.driver = Driver(seed=seed, **rules)
        self.driver.checking = nodes <= 12
        self.began = self.driver.now
        self.given: Counter[int] = Counter()  # leases of each node
        self.reads: Counter[int] = Counter()  # reads of each chunk from upstream
        self.true: set[int] = set()
        self.lies: set[int] = set()
        self._kinds, self._slow = dict(kinds or {}), dict(slow or {})
        self._rate, self._first, self._stall = rate, first, stall
        self._rng = random.Random(seed)
        self._events: list[tuple[float, int, Callable[..., Any], int, int]] = []
        self._free = self.began
        self._chunks = chunks
        for number in range(1, nodes + 1):
            self._at(self.began + (0.0 if number in self._kinds else wait) + number * 1e-6, self._join, number, chunks)

    def run(self, most: float = 1000.0, until: float = float("inf")) -> float:
        """Until every chunk has come, true or not, or until so many seconds: how many seconds that took."""
        driver = self.driver
        while driver.now < self.began + until and len(self.true | self.lies) < self._chunks:
            timer = driver.cluster.next_deadline() or float("inf")
            event = self._events[0][0] if self._events else float("inf")
            driver.now = max(driver.now, min(timer, event))
            assert driver.now < self.began + most, "it takes for ever"
            if event <= timer:
                _, _, call, number, index = heapq.heappop(self._events)
                call(number, index)
            else:
                self._hear(driver._take(driver.cluster.tick(driver.now)))
        return driver.now - self.began

    @property
    def copies(self) -> float:
        """What was read from upstream, in copies of what was read at all."""
        return sum(self.reads.values()) / len(self.reads)

    def _at(self, when: float, call: Callable[..., Any], number: int, index: int) -> None:
        heapq.heappush(self._events, (when, len(self._events) + self._rng.randrange(1 << 30), call, number, index))

    def _hear(self, said: list[tuple[int, Any]]) -> None:
        for number, message in said:
            if isinstance(message, wire.Lease):
                assert not message.alone and message.digest == digest("blob")
                self.given[number] += 1
                self._read(number, message.first)

    def _read(self, number: int, index: int) -> None:
        now, kind = self.driver.now, self._kinds.get(number)
        if kind == "lies":
            self._at(now + LIE, self._lie, number, index)
        elif kind == "drips":
            self._at(now + 9.9, self._half, number, index)
        elif kind is None:
            self.reads[index] += 1
            begin = max(now, self._free)
            if self._stall[0] <= begin - self.began < self._stall[1]:
                begin = self.began + self._stall[1]
            self._free = begin + 1 / self._rate
            done = self._free + self._first + self._slow.get(number, 0.0) + LAG
            self._at(done - 0.5 / self._rate, self._half, number, index)
            self._at(done, self._got, number, index)

    def _join(self, number: int, chunks: int) -> None:
        self._hear(self.driver.join(number, "blob", chunks=chunks))

    def _half(self, number: int, index: int) -> None:
        self._hear(self.driver.half(number, "blob", index))

    def _got(self, number: int, index: int) -> None:
        self.true.add(index)
        self._hear(self.driver.got(number, "blob", index))

    def _lie(self, number: int, index: int) -> None:
        self.lies.add(index)
        self._hear(self.driver.half(number, "blob", index))
        self._hear(self.driver.got(number, "blob", index))
