"""A set from which a few members can be drawn at random without looking at all of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Roster(Generic[T]):
    """Add, discard and membership in O(1), a sample of k in O(k)."""

    __slots__ = ("_items", "_places")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._places: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: T) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def add(self, item: T) -> None:
        """Add; nothing happens if it is in."""
        if item not in self._places:
            self._places[item] = len(self._items)
            self._items.append(item)

    def discard(self, item: T) -> None:
        """Take out; nothing happens if it isn't in."""
        place = self._places.pop(item, None)
        if place is None:
            return
        last = self._items.pop()
        if last is not item:
            self._items[place] = last
            self._places[last] = place

    def only(self) -> T:
        """The one member of a roster of one."""
        (item,) = self._items
        return item

    def sample(self, rng: random.Random, count: int) -> list[T]:
        """Up to `count` different members, in random order."""
        items, size = self._items, len(self._items)
        if 4 * count >= size:
            return rng.sample(items, min(count, size))
        places: dict[int, None] = {}  # a few of many: `sample` would cost five times as much
        while len(places) < count:
            places[int(rng.random() * size)] = None
        return [items[place] for place in places]
