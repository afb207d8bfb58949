"""Which blobs' bodies had to be cut lately."""

from __future__ import annotations

from collections.abc import Callable

from p2pdist.oci import Digest

MAX_REMEMBERED = 1024


class CutBlobs:
    """For `seconds` after its body was cut a blob is not served, so that clients go on at the upstream.

    They resume by Range: an honest rest after a bad beginning would be a failed pull, or worse, a poisoned content
    store (design page "clients", section 5.4).
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: dict[Digest, float] = {}  # in order of the times

    def add(self, digest: Digest) -> None:
        """A body of `digest` was cut just now."""
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + self._seconds
        while len(self._until) > MAX_REMEMBERED:
            del self._until[next(iter(self._until))]

    def __contains__(self, digest: Digest) -> bool:
        until = self._until.get(digest)
        if until is None:
            return False
        if self._clock() < until:
            return True
        del self._until[digest]
        return False
