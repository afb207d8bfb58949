"""A blob's bytes from upstream: exactly those that were asked, resumed where they were cut.

Nothing here hashes: whoever reads proves. What is checked is everything that can be known without: announced lengths,
ranges, and that neither more nor fewer bytes come than were asked.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from p2pdist.errors import UpstreamError, UpstreamInvalid, UpstreamUnreachable
from p2pdist.protocol.limits import MAX_BLOB
from p2pdist.upstream.transport import Stalled, translated

RESUMES = 4  # in a row without `PROGRESS` bytes in between; a stall, which costs its timeout, counts twice
PROGRESS = 1024 * 1024
TRICKLE = 16 * 1024  # bytes that must come in one stall timeout of waiting

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

Open = Callable[[int, int | None], Awaitable[aiohttp.ClientResponse]]
"""Asks for the bytes from `start` to before `end`; answers 200 or 206, anything else is raised."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an answer's head says: it holds bytes from `first` on, up to before `last` (None: unknown)."""

    response: aiohttp.ClientResponse
    first: int
    last: int | None
    total: int | None


class BlobBody:
    """Iterate over it for the bytes, in order, in pieces as they come; made by `Registry.read_blob`.

    Attributes:
        start: the first byte asked.
        total: size of the whole blob in bytes; None only if part of it was asked and nobody said.
        ranged: False if the registry ignores Range, so that reading from `start` costs the bytes before it, too.

    Raises, while iterating:
        UpstreamInvalid: more bytes came than there can be, or the body ends too early again and again.
        UpstreamUnreachable: it stalled or was cut for good.
        UpstreamError: what else the registry answers when asked for the rest.
    """

    def __init__(
        self,
        what: str,
        start: int,
        end: int | None,
        size: int | None,
        open_: Open,
        stall: float,
        clock: Callable[[], float],
    ) -> None:
        self.start = start
        self.total = size
        self._end = end if size is None else min(size, size if end is None else end)
        self.ranged = True
        self._what = what
        self._open = open_
        self._stall = stall
        self._clock = clock
        self._at = self._reached = start
        self._allowance = RESUMES
        self._answer: _Answer | None = None
        self._position = 0  # of the current answer's next byte, in the blob
        self._waited, self._came = 0.0, 0

    @property
    def end(self) -> int:
        """The byte after the last; known once `open` has returned."""
        assert self._end is not None, "open() comes first"
        return self._end

    async def open(self) -> None:
        """Send the request, unless nothing is asked, and check what the answer's head promises."""
        if self._end is None or self.start < self._end:
            await self._ask()

    def close(self) -> None:
        """Done, at whatever point. A connection with bytes left is not used again."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.response.close()

    def __aiter__(self) -> BlobBody:
        return self

    async def __anext__(self) -> bytes:
        while self._at < self.end:
            try:
                piece = await self._read(self._answer or await self._ask())
            except UpstreamUnreachable as error:
                self._allow_resume(error)
                continue
            if piece:
                wanted = self._cut(piece)
                if wanted:
                    self._at += len(wanted)
                    return wanted
            else:
                self._allow_resume(UpstreamInvalid(f"{self._what}: ended at byte {self._at} of {self.end}"))
        await self._finish()
        raise StopAsyncIteration

    # --- asking ---

    async def _ask(self) -> _Answer:
        response = await self._open(self._at, self._end)
        try:
            answer = self._checked(response)
        except UpstreamInvalid:
            response.close()
            raise
        if self.total is None and answer.total is not None:
            self.total = answer.total
            self._end = answer.total if self._end is None else min(self._end, answer.total)
        if self._end is None:
            response.close()
            raise UpstreamInvalid(f"{self._what}: neither its manifest nor the registry says how long it is")
        self._answer, self._position = answer, answer.first
        self._waited, self._came = 0.0, 0
        return answer

    def _checked(self, response: aiohttp.ClientResponse) -> _Answer:
        length = response.content_length
        last: int | None
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            if match is None:
                raise UpstreamInvalid(f"{self._what}: 206 without a Content-Range that can be read")
            first, last = int(match[1]), int(match[2]) + 1
            total = None if match[3] == "*" else int(match[3])
            if first != self._at or last <= first or (total is not None and last > total):
                raise UpstreamInvalid(f"{self._what}: asked from byte {self._at}; got {match[0]!r}")
            if length is not None and length != last - first:
                raise UpstreamInvalid(f"{self._what}: {match[0]!r}, but {length} bytes announced")
        else:
            first, total = 0, length
            last = length if length is not None else self.total
            self.ranged = self.ranged and self._at == 0
        if total is not None and self.total is not None and total != self.total:
            raise UpstreamInvalid(f"{self._what}: has {self.total} bytes; the registry announces {total}")
        if total is not None and total > MAX_BLOB:
            raise UpstreamInvalid(f"{self._what}: {total} bytes announced; at most {MAX_BLOB} are taken")
        return _Answer(response, first, last, total)

    def _allow_resume(self, failed: UpstreamError) -> None:
        """Drop the answer so that the rest is asked anew; raises `failed` when that has been done often enough."""
        self.close()
        if self._at - self._reached >= PROGRESS:
            self._allowance, self._reached = RESUMES, self._at
        self._allowance -= 2 if isinstance(failed, Stalled) else 1
        if self._allowance < 0:
            raise failed

    # --- reading ---

    async def _read(self, answer: _Answer) -> bytes:
        """The next piece of an answer; empty at its end."""
        started = self._clock()
        with translated(answer.response.url):
            piece: bytes = await answer.response.content.readany()
        # Only waiting counts: a consumer that takes its time is not the registry's fault.
        self._waited += self._clock() - started
        self._came += len(piece)
        if self._came >= TRICKLE:
            self._waited, self._came = 0.0, 0
        elif piece and self._waited > self._stall:
            raise Stalled(f"{self._what}: only {self._came} bytes in {self._waited:.0f} s")
        return piece

    def _cut(self, piece: bytes) -> bytes:
        """What of a piece is wanted: nothing before where we are, nothing from `end` on."""
        begin = self._position
        self._position += len(piece)
        answer = self._answer
        bound = answer.last if answer is not None and answer.last is not None else MAX_BLOB
        if self._position > bound:
            raise UpstreamInvalid(f"{self._what}: more bytes came than the {bound} there can be")
        stop = min(len(piece), self.end - begin)
        skip = max(0, self._at - begin)
        return piece if skip == 0 and stop == len(piece) else piece[skip:stop]

    async def _finish(self) -> None:
        """Everything asked is here: see that the answer ends, too, and give the connection back."""
        answer = self._answer
        if answer is None or answer.last != self.end:
            self.close()  # a longer answer than was asked, because Range is ignored
            return
        try:
            surplus = await self._read(answer)
        except UpstreamUnreachable:
            surplus = b""  # only its end is missing
        self.close()
        if surplus:
            raise UpstreamInvalid(f"{self._what}: more bytes came than the {answer.last} there can be")
