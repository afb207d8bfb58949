"""Chunks from a node of another zone, under a lease: asked for directly, no neighbour being between.

Connections are kept per source for the next chunk. A source that has the blob stored but not open opens it for a
neighbour only: so one that answers 404 is dialled, and asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from p2pdist.errors import PeerError, ProtocolError, SignerRefused, StorageError
from p2pdist.mesh.decide import Ask
from p2pdist.mesh.fetching import Fetch, Outbound, prove_answer
from p2pdist.mesh.wire import Head
from p2pdist.protocol.messages import PeerInfo
from p2pdist.swarm.exchange import Exchange

TRIES = 8  # requests for one chunk that a source may put off
PAUSE = 0.1  # seconds before the second one; grows by as much
KEPT = 64  # idle connections, over all sources


class Carrier:
    """`connect` opens a connection to a peer and proves that it is the one; `dial` makes it a neighbour.

    `stall`: seconds without a byte after which a source is given up.
    """

    def __init__(
        self,
        connect: Callable[[Outbound, PeerInfo], Awaitable[None]],
        dial: Callable[[PeerInfo], None],
        head: Callable[[], str],
        count: Callable[[int], None],
        refused: Callable[[Fetch, Exception], None],
        banned: Callable[[bytes], bool],
        stall: float,
    ) -> None:
        self._connect = connect
        self._dial = dial
        self._head = head
        self._count = count
        self._refused = refused
        self._banned = banned
        self._stall = stall
        self._idle: dict[bytes, list[Outbound]] = {}

    async def fetch(self, exchange: Exchange, index: int, source: PeerInfo, half: Callable[[], None]) -> None:
        """Bring chunk `index`, proved; `half` is called when half of it is here.

        Raises:
            PeerError: the source doesn't give it, or gives something else.
            StorageError: it can't be written.
        """
        if self._banned(source.node):
            raise PeerError("this node has banned it", peer=source.node.hex())
        for attempt in range(TRIES):
            if exchange.have >> index & 1:
                return
            one = _One(Fetch(Ask(source.node, exchange.name, index), exchange), half, self._count)
            answer = await self._ask(one, source)
            if answer is not None:
                self._prove(one.fetch, answer)
                return
            if one.absent and not attempt:
                self._dial(source)
            await asyncio.sleep(PAUSE * (attempt + 1))
        raise PeerError(f"chunk {index} of {exchange.name} was put off {TRIES} times", peer=source.node.hex())

    async def _ask(self, one: _One, source: PeerInfo) -> Head | None:
        """The answer's head, all bytes being in the receiver; None: put off."""
        idle = self._idle.get(source.node, [])
        kept = _usable(idle)
        outbound = kept or Outbound(one)
        outbound.hand(one)
        try:
            if kept is None:
                await self._connect(outbound, source)
            outbound.request(one.fetch, self._head())
            return await self._answered(one)
        except (OSError, TimeoutError, ProtocolError, ValueError) as error:
            if kept is not None and isinstance(error, ConnectionError) and one.fetch.receiver is None:
                return None  # it was closed while nobody needed it: another one is opened
            raise PeerError(f"{error or type(error).__name__}", peer=source.node.hex()) from error
        finally:
            one.answer.cancel()
            if not one.settled or not outbound.usable or sum(map(len, self._idle.values())) >= KEPT:
                outbound.close()
            else:
                self._idle.setdefault(source.node, []).append(outbound)

    async def _answered(self, one: _One) -> Head | None:
        loop = asyncio.get_running_loop()
        while True:
            done, _ = await asyncio.wait({one.answer}, timeout=self._stall / 3)
            if done:
                return one.answer.result()
            if one.fetch.connection is not None:
                one.fetch.connection.look()
            if loop.time() - one.heard > self._stall:
                raise TimeoutError(f"nothing came for {self._stall} s")

    def _prove(self, fetch: Fetch, head: Head) -> None:
        try:
            prove_answer(fetch, head)
        except SignerRefused:
            raise
        except (PeerError, ProtocolError) as error:
            self._refused(fetch, error)
            raise PeerError(str(error), peer=fetch.ask.peer.hex()) from error

    def close(self) -> None:
        """Let go of every connection."""
        for idle in self._idle.values():
            for outbound in idle:
                outbound.close()
        self._idle.clear()


def _usable(idle: list[Outbound]) -> Outbound | None:
    """A kept connection, if one can still be used; those that can't are dropped."""
    while idle:
        outbound = idle.pop()
        if outbound.usable and outbound.ends > time.time():
            return outbound
        outbound.close()
    return None


class _One:
    """One request; see `fetching.FetchOwner`."""

    def __init__(self, fetch: Fetch, half: Callable[[], None], count: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self.fetch = fetch
        self.answer: asyncio.Future[Head | None] = loop.create_future()
        self.heard = loop.time()
        self.absent = False
        self.settled = False  # answered as it should be: the connection can be used again
        self._loop = loop
        self._half = half
        self._count = count

    def fetch_answered(self, fetch: Fetch, load: int) -> bool:
        self.heard = self._loop.time()
        return not fetch.exchange.have >> fetch.ask.index & 1

    def fetch_progress(self, fetch: Fetch, got: int) -> None:
        self.heard = self._loop.time()
        self._count(got)
        receiver = fetch.receiver
        if receiver is not None and not fetch.half and 2 * receiver.remaining <= fetch.exchange.length(fetch.ask.index):
            fetch.half = True
            self._half()

    def fetch_done(self, fetch: Fetch, head: Head) -> None:
        self._settle(head)

    def fetch_busy(self, fetch: Fetch, load: int) -> None:
        self._settle(None)

    def fetch_absent(self, fetch: Fetch, load: int) -> None:
        self.absent = True
        self._settle(None)

    def _settle(self, head: Head | None) -> None:
        self.settled = True
        if not self.answer.done():
            self.answer.set_result(head)

    def fetch_failed(self, fetch: Fetch, why: Exception) -> None:
        if self.answer.done():
            return
        if fetch.exchange.have >> fetch.ask.index & 1:
            self.answer.set_result(None)  # it came on another way
        elif isinstance(why, (OSError, StorageError, PeerError)):
            self.answer.set_exception(why)
        else:
            self.answer.set_exception(PeerError(str(why), peer=fetch.ask.peer.hex()))
