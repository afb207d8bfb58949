"""This replica among the others: it leads, follows the one that does, or looks for it.

The State says who leads. Without it links stay as they are; if the leader is gone as well, the survivors agree by
themselves (`election`). Of two leaders that meet one follows the other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import structlog
from aiohttp import web

from p2pdist.errors import ProtocolError, StorageError
from p2pdist.protocol.messages import Banned
from p2pdist.scope import Scope
from tracker.replicas.dialling import CONNECT_TIMEOUT, LOST, Dialler, reason_of
from tracker.replicas.election import DEAF, LIFETIME, ORPHANED, QUIET, RENEW, SILENT, Memory, outranks, same_keys
from tracker.replicas.leading import Leading
from tracker.replicas.link import Branch, Line, LinkLost, Relay
from tracker.replicas.wire import (
    VERSION,
    Elsewhere,
    Greet,
    Leads,
    Replica,
    ToLeader,
    decode_to_leader,
)
from tracker.state import Leader, State
from tracker.state.reach import Reach
from tracker.visits import Visits

log = structlog.get_logger()
AGAIN = 0.2  # seconds between two looks for a leader


class ThisReplica:
    """`begin`: makes the decisions of one that leads, from now on. `tls`: for links; None where nothing is encrypted.
    `hear_ban`: the one that is followed has shut a node out, or lets it in again.

    `settled`: it leads, follows, or found a leader of other keys. `orphaned`: there has been no leader for so long that
    agents are better off elsewhere.
    """

    def __init__(
        self,
        memory: Memory,
        state: State,
        reach: Reach,
        visits: Visits,
        begin: Callable[[], Leading],
        tls: ssl.SSLContext | None,
        scope: Scope,
        hear_ban: Callable[[Banned], None],
    ) -> None:
        self.memory = memory
        self.leading: Leading | None = None
        self.orphaned = False
        self.foreign = ""  # a leader that has other keys than this replica: its address
        self.branches: list[Branch] = []
        self.settled = asyncio.Event()
        self._relay: Relay | None = None
        self._state = state
        self._reach = reach
        self._visits = visits
        self._begin = begin
        self._scope = scope
        self._orders: asyncio.Task[None] | None = None
        self._dialler = Dialler(memory, visits, tls, hear_ban)
        self._wake = asyncio.Event()
        self._yielding = False

    @property
    def follows(self) -> str:
        """The address of the leader that is followed; empty: none is."""
        return self.memory.leader.address if self._relay is not None and self.memory.leader is not None else ""

    def wake_orders(self) -> None:
        """An order was taken here: if we lead, we look now, otherwise the leader looks within a second."""
        if self.leading is not None:
            self.leading.orders.wake()

    def lead_alone(self) -> None:
        """There are no others."""
        self._lead(1)

    async def run(self) -> None:
        """Take part until cancelled."""
        async with self._dialler:
            try:
                while True:
                    try:
                        await self._step()
                    except Exception:  # one that took part no more would hold its agents for ever
                        log.exception("something unexpected: this replica begins again")
                        self._resign("something unexpected")
                        await asyncio.sleep(RENEW)
            finally:
                await self.leave()

    async def _step(self) -> None:
        if self.leading is not None:
            await self._stay()
        elif self._relay is not None:
            await self._follow(self._relay)
        else:
            await self._seek()

    async def leave(self) -> None:
        """Lead no more, for good; the next one is to begin at once."""
        led = self.leading is not None
        self._resign("this replica stops")
        if led:
            try:
                await self._state.resign(self.memory.me)
            except StorageError as error:
                log.warning("the next leader has to wait until our time is over", error=str(error))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _ask(self) -> Leader | None:
        """Who leads, which may be us from now on; None if the State can't say."""
        try:
            leader = await self._state.lead(self.memory.me, self.memory.address, LIFETIME)
        except StorageError as error:
            self._reach.failed(error)
            return None
        self._reach.answered()
        self.foreign = "" if same_keys(leader.owner, self.memory.me) else leader.address
        if self.foreign:
            self.settled.set()
            return None
        return leader

    # --- leading ---

    def _lead(self, term: int) -> None:
        memory = self.memory
        if memory.address:  # there may be others
            log.info("this replica leads", replica=memory.me, term=term)
        memory.hear(Replica(memory.me, memory.address), term)
        self._yielding, self.orphaned = False, False
        self.leading = self._begin()
        self._visits.attach(self.leading.voice(self._visits))
        self._orders = self._scope.spawn(self.leading.orders.run())
        self.settled.set()

    def _resign(self, reason: str) -> None:
        leading, self.leading = self.leading, None
        if leading is not None:
            if self.memory.address:
                log.info("this replica leads no more", replica=self.memory.me, reason=reason)
            leading.stop()
            if self._orders is not None:
                self._orders.cancel()
            for branch in self.branches:
                branch.line.close(reason)
            self._visits.attach(None)

    async def _stay(self) -> None:
        """Lead, until another one does."""
        since = loop_time()  # of our last undisputed moment
        while True:
            leader, relay = await self._ask(), None
            if leader is None:
                relay = await self._herald()
            elif leader.owner == self.memory.me:
                since = loop_time()
                if leader.term != self.memory.term:
                    self.memory.term = leader.term
                    self.announce()
            else:  # it may be one that the State remembers and that is gone
                found = await self._dialler.connect(leader.address)
                relay = found if isinstance(found, Relay) else None
            if relay is not None or self._yielding or (leader is not None and loop_time() - since > 2 * LIFETIME):
                self._resign("another one leads")
                self._relay = relay
                return
            await self._wait(RENEW)

    async def _herald(self) -> Relay | None:
        """With no State: ask those that were linked and aren't now whether they lead, or whom they follow."""
        linked = {branch.address for branch in self.branches}
        away = [address for address in self.memory.others if address not in linked]
        found = await asyncio.gather(*(self._dialler.connect(address, self.memory.term) for address in away))
        relays = [relay for relay in found if isinstance(relay, Relay)]
        for relay in relays[1:]:
            await self._dialler.hang_up(relay)
        if relays:
            return relays[0]
        for answer in found:
            if isinstance(answer, Elsewhere) and answer.term > self.memory.term:
                other = await self._dialler.connect(answer.address, self.memory.term)
                if isinstance(other, Relay):
                    return other
        return None

    def announce(self) -> None:
        """Tell the followers who leads, and who they are."""
        for branch in self.branches:
            branch.line.push(self._leads())

    def _leads(self) -> Leads:
        memory = self.memory
        linked = [Replica(branch.replica, branch.address) for branch in self.branches]
        for one in linked:
            memory.others[one.address] = one.id
        return Leads(memory.me, memory.term, [Replica(memory.me, memory.address), *linked])

    # --- looking for a leader ---

    async def _seek(self) -> None:
        since = loop_time()
        while True:
            leader, relay, wait = await self._ask(), None, False
            if leader is None:
                relay, wait = await self._ask_around()
            elif leader.owner == self.memory.me:
                self._lead(leader.term)
                return
            else:
                found = await self._dialler.connect(leader.address)
                relay = found if isinstance(found, Relay) else None
            if relay is not None:
                self._relay = relay
                return
            gone = loop_time() - since
            if leader is None and not wait and not self.foreign and gone >= LIFETIME:
                self._lead(self.memory.term + 1)
                return
            if gone > ORPHANED:
                self.orphaned = True
                self._visits.end_all("no replica of this tracker leads")
            await self._wait(AGAIN)

    async def _ask_around(self) -> tuple[Relay | None, bool]:
        """A link to a leader; or whether somebody answers who is to lead, or follows one that we don't reach."""
        wait = False
        for address, waits in self.memory.candidates():
            found = await self._dialler.connect(address)
            if isinstance(found, Elsewhere) and found.term and found.address != address:
                wait = True
                found = await self._dialler.connect(found.address)
            if isinstance(found, Relay):
                return found, False
            wait = wait or (waits and found is not None)
        return None, wait

    # --- following ---

    async def _follow(self, relay: Relay) -> None:
        log.info("this replica follows", leader=self.follows, term=relay.leads.term)
        self.orphaned = False
        self._visits.attach(relay)
        self.settled.set()
        reason = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(relay.run(lambda: len(self._visits)))
                tasks.create_task(self._watch(relay))
        except* LOST as group:
            reason = reason_of(group)
        finally:
            self._relay = None
            self._visits.attach(None)
            await self._dialler.hang_up(relay)
        log.info("the link to the leader is lost", reason=reason)

    async def _watch(self, relay: Relay) -> None:
        """One that falls silent may lead no more: the State knows, or time does."""
        while True:
            await self._wait(QUIET / 4)
            quiet = loop_time() - relay.heard
            if quiet < QUIET:
                continue
            leader = await self._ask()
            other = leader is not None and leader.owner != relay.leads.replica
            if other or quiet > DEAF or (leader is None and quiet > SILENT):
                raise LinkLost(f"the leader has been silent for {quiet:.1f} s")

    # --- being greeted ---

    async def greeted(self, socket: web.WebSocketResponse) -> None:
        """Another replica has opened a link: answer, and serve it if it follows us."""
        line = Line(socket)
        try:
            first: list[ToLeader] = decode_to_leader(await line.receive(CONNECT_TIMEOUT))
            greet = first[0] if first else None
            if not isinstance(greet, Greet) or greet.version != VERSION:
                raise ProtocolError(f"wanted a greeting of version {VERSION}, got {greet!r:.100}")
            if not same_keys(greet.replica, self.memory.me):
                raise ProtocolError("it has other keys than this replica: give all the same authority_directory")
            if self.leading is not None and self._keeps(greet):
                await self._serve(socket, greet, self.leading)
            else:
                await line.send(self._elsewhere(greet))
        except LOST as error:
            log.info("a link from a replica ends", reason=reason_of(error))

    def _keeps(self, greet: Greet) -> bool:
        """Whether we go on leading."""
        return not greet.term or outranks(self.memory.term, self.memory.me, greet.term, greet.replica)

    def _elsewhere(self, greet: Greet) -> Elsewhere:
        memory = self.memory
        if greet.term > memory.term or (greet.term and self._relay is None):  # it leads, and we don't or must not
            memory.hint = greet.address
            memory.others[greet.address] = greet.replica
            self._yielding = self.leading is not None
            if self._relay is not None:
                self._relay.line.close("another one leads")
            self._wake.set()
            return Elsewhere(memory.me)
        if self._relay is not None and memory.leader is not None:
            return Elsewhere(memory.me, memory.leader.address, memory.term)
        return Elsewhere(memory.me)

    async def _serve(self, socket: web.WebSocketResponse, greet: Greet, leading: Leading) -> None:
        branch = Branch(socket, greet, leading)
        self.branches.append(branch)
        log.info("a replica follows", replica=greet.replica, address=greet.address)
        self.announce()
        reason = ""
        try:
            await branch.run()
        except* LOST as group:
            reason = reason_of(group)
        finally:
            self.branches.remove(branch)
            if self.leading is leading:
                self.announce()
            log.info("a replica follows no more", replica=greet.replica, reason=reason)


def loop_time() -> float:
    """Seconds of the event loop's clock."""
    return asyncio.get_running_loop().time()
