"""The modelled links: max-min fair shares of all transfers under way, as arrays."""

from __future__ import annotations

import numpy as np

from p2pdist.mesh.decide import Ask


class Links:
    """All transfers under way, as arrays: who sends to whom, how many bytes are left."""

    def __init__(self, up: np.ndarray, down: np.ndarray) -> None:
        self.up, self.down = up, down
        self.up_level, self.down_level = up.copy(), down.copy()
        size = 1024
        self.source = np.zeros(size, np.int32)
        self.target = np.zeros(size, np.int32)
        self.left = np.zeros(size)
        self.half = np.zeros(size)
        self.active = np.zeros(size, bool)
        self.owner: list[Transfer | None] = [None] * size
        self.free = list(range(size))

    def start(self, transfer: Transfer, size: float) -> None:
        if not self.free:
            old = len(self.left)
            for field in ("source", "target", "left", "half", "active"):
                array = getattr(self, field)
                setattr(self, field, np.concatenate([array, np.zeros_like(array)]))
            self.owner += [None] * old
            self.free = list(range(old, 2 * old))
        slot = self.free.pop()
        transfer.slot = slot
        self.source[slot], self.target[slot] = transfer.source, transfer.target
        self.left[slot], self.half[slot] = size, size / 2
        self.active[slot] = True
        self.owner[slot] = transfer

    def stop(self, transfer: Transfer) -> None:
        if transfer.slot >= 0:
            self.active[transfer.slot] = False
            self.owner[transfer.slot] = None
            self.free.append(transfer.slot)
            transfer.slot = -1

    def advance(self, seconds: float) -> tuple[list[Transfer], list[Transfer]]:
        """Move bytes; the transfers that reached half, and those that are complete."""
        slots = np.flatnonzero(self.active)
        if not len(slots):
            return [], []
        rate = self._rates(self.source[slots], self.target[slots])
        before = self.left[slots]
        after = before - rate * seconds
        self.left[slots] = after
        half = self.half[slots]
        halves = slots[(before > half) & (after <= half)]
        whole = slots[after <= 0]
        return [t for s in halves if (t := self.owner[s])], [t for s in whole if (t := self.owner[s])]

    def _rates(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Max-min fair rates of all transfers, by water levels of both ends that follow each other.

        The levels of the step before are the start: few transfers change from one step to the next.
        """
        for _ in range(2):
            self.up_level = _level(self.up, source, self.down_level[target])
            self.down_level = _level(self.down, target, self.up_level[source])
        rate = np.minimum(self.up_level[source], self.down_level[target])
        # Levels that are still on their way may ask too much of a link.
        rate *= np.minimum(1.0, self.up / np.maximum(1e-9, np.bincount(source, rate, len(self.up))))[source]
        rate *= np.minimum(1.0, self.down / np.maximum(1e-9, np.bincount(target, rate, len(self.down))))[target]
        return np.asarray(rate)


def _level(capacity: np.ndarray, end: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each link gives to every transfer that its other end (`other`, per transfer) does not hold below that."""
    many = np.bincount(end, minlength=len(capacity))
    level = capacity / np.maximum(many, 1)  # from below: from above it may stop where all seem to be held
    for _ in range(3):
        held = other < level[end]
        used = np.bincount(end, np.where(held, other, 0.0), len(capacity))
        free = many - np.bincount(end, held, len(capacity))
        # Where all are held below the level, none of them needs more than the largest: the link is no limit.
        level = np.where(free > 0.5, np.maximum(0.0, capacity - used) / np.maximum(free, 1.0), capacity)
    return level


class Transfer:
    """One chunk on its way. `ask` is None for a read from upstream."""

    __slots__ = ("alone", "ask", "index", "slot", "source", "target")

    def __init__(self, source: int, target: int, index: int, ask: Ask[bytes] | None, alone: bool = False) -> None:
        self.source, self.target, self.index, self.ask, self.alone = source, target, index, ask, alone
        self.slot = -1
