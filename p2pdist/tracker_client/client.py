"""Keeps a session with one of several trackers for as long as the agent runs.

Every address of every URL is a place to try, in this node's own order (`p2pdist.places`). A session whose tracker says
nothing to a ping for a second is doubted: others are tried beside it, and the first that answers takes over. A node
that has lost its first choice goes back some minutes later, when nothing is under way.

Frames are batched: everything said in one loop turn leaves in one frame. Nothing is queued while there is no session:
the agent says everything again when it hears that it is connected. Only questions wait: they are asked again.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import TrackerError
from p2pdist.places import Place, Places, addresses_of
from p2pdist.protocol import messages
from p2pdist.protocol.messages import Absent, Content, Fetch, FromAgent, FromTracker, Pong, Welcome
from p2pdist.tracker_client.finding import Finder, Found, guarded
from p2pdist.tracker_client.questions import Questions
from p2pdist.tracker_client.session import Me, Session, check
from p2pdist.tracker_client.watch import Watch

log = structlog.get_logger()

CONNECT_TIMEOUT = 2.0  # seconds for connecting, and for the greeting; doubles with every round in which nobody answers
LONGEST_TIMEOUT = 16.0
FIRST_DELAY = 0.2  # seconds between two rounds; doubles
LONGEST_DELAY = 5.0
LASTING = 5.0  # seconds after which a session that ends is followed by the next one at once
HOME = 300.0  # seconds, on average, between two looks whether there is a better place; doubles where it didn't last
MOST_RELUCTANT = 16.0
HANGING = 5.0  # seconds of silence after which a new connection to the same place is tried too
PROVEN = 60.0  # seconds after which going back is taken to have been right


class TrackerClient:
    """Keeps a session with one of several trackers.

    `on_message` gets every message of the tracker, synchronously and in order, those that answer `ask` included;
    `on_state` hears True when the session is up (Welcome has been handed over), and again when a tracker that was
    silent speaks; False when the session is lost, and when its tracker is silent and no other answers. A
    ProtocolError from `on_message` closes the session; any other exception ends `run`.

    `busy` says whether something is awaited from the tracker: then its silence is noticed within a second or two.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: Ed25519PrivateKey,
        name: str,
        host: str,
        port: int,
        labels: Mapping[str, str],
        *,
        on_message: Callable[[FromTracker], None],
        on_state: Callable[[bool], None],
        busy: Callable[[], bool] = bool,
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        resolve: Callable[[str, int], list[str]] = addresses_of,
        home: float = HOME,
    ) -> None:
        if not urls:
            raise ValueError("a tracker client needs at least one URL")
        self._me = Me(key, name, host, port, dict(labels))
        self._places = Places(urls, self._me.node, resolve=resolve)
        self._tls = tls  # for https:// trackers: this node's certificate and the authority it trusts
        self._on_message = on_message
        self._on_state = on_state
        self._busy = busy
        self._rng = rng or random.Random()
        self._pause = pause  # between rounds
        self._queue: list[FromAgent] = []
        self._wake = asyncio.Event()
        self._questions = Questions(self.send)
        self._watch: Watch | None = None
        self._delay, self._timeout = FIRST_DELAY, CONNECT_TIMEOUT
        self._short = 0  # sessions in a row that didn't last
        self._home, self._reluctance = home, 1.0
        self._told = False
        self._size = 1  # of the cluster, as last heard
        self.connected = False
        self.place: Place | None = None  # where the session is
        self.welcome: Welcome | None = None  # the last one; kept while the session is lost

    def send(self, message: FromAgent) -> bool:
        """Say something to the tracker with this loop turn's frame; False (and dropped) when there is no session."""
        if not self.connected:
            return False
        self._queue.append(message)
        self._wake.set()
        if self._watch is not None and not isinstance(message, messages.Ping):
            self._watch.said.set()
        return True

    async def ask(self, key: str, timeout: float) -> Content | Fetch | Absent:
        """Ask for small content; `Fetch` means: read it from upstream and send Offer or Refuse.

        Raises:
            TrackerError: there is no session, it was lost meanwhile and no other tracker took over soon, or no answer
                came within `timeout` seconds.
        """
        return await self._questions.ask(key, timeout)

    # --- which session ---

    async def run(self) -> None:
        """Keep a session until cancelled."""
        try:
            async with Finder(self._places, self._me, self._tls) as finder:
                left: Place | None = None
                while True:
                    found: Found | None = await self._find(finder, left)
                    while found is not None:
                        finder.part(found[0])
                        left = found[0].place
                        found = await self._keep(finder, *found)
                    finder.part()
                    await self._breathe()
        finally:
            self._questions.give_up()

    async def _breathe(self) -> None:
        """Before the next round, if the last sessions were short ones; a little where many lost the same tracker."""
        if not self._short:
            self._delay = FIRST_DELAY
            await self._pause(self._rng.uniform(0, FIRST_DELAY))
        elif self._short >= len(self._places):
            await self._wait()

    async def _wait(self) -> None:
        await self._pause(self._rng.uniform(self._delay / 2, self._delay))
        self._delay = min(LONGEST_DELAY, 2 * self._delay)

    async def _find(self, finder: Finder, left: Place | None) -> Found:
        """A session, however long it takes; at `left` only if nobody else answers."""
        while True:
            places = await self._places.ranked()
            found = await finder.round(sorted(places, key=lambda place: place == left), self._timeout)
            if found is not None:
                self._timeout = CONNECT_TIMEOUT
                return found
            left = None
            self._timeout = min(LONGEST_TIMEOUT, 2 * self._timeout)
            await self._wait()

    # --- a session ---

    async def _keep(self, finder: Finder, session: Session, welcome: Welcome) -> Found | None:
        """Hand over what comes and send what is said; the session that takes over, or None when it is lost."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.place = session.place
        self._wake.clear()
        self._watch = watch = Watch(session, welcome.session_timeout / 3, self.send, self._awaiting, lambda: self._size)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(guarded(session.place, None, self._read(session, welcome)))
                sender = tasks.create_task(guarded(session.place, None, self._speak(session)))
                doubter = tasks.create_task(self._doubt(finder, session, watch))
                homing = tasks.create_task(self._go_home(finder, session))
                work = {reader, sender, doubter, homing}
                await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in work:
                    task.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            self.connected, self.place, self._watch = False, None, None
            self._queue.clear()
            self._questions.lost()
            self._tell(False)
        lasted = loop.time() - begun
        if lasted >= PROVEN:
            self._reluctance = 1.0
        for mover in (doubter, homing):
            if mover.done() and not mover.cancelled():
                self._short = 0
                log.info("another tracker takes over", old=session.place.base, new=mover.result()[0].place.base)
                return mover.result()
        self._short = 0 if lasted >= LASTING else self._short + 1
        return None

    def _awaiting(self) -> bool:
        return bool(self._questions) or self._busy()

    def _tell(self, state: bool) -> None:
        if self._told is not state:
            self._told = state
            self._on_state(state)

    async def _read(self, session: Session, welcome: Welcome) -> None:
        self.connected = True
        self._deliver(welcome)
        self._tell(True)
        self._questions.again()
        batch, session.rest = session.rest, []
        try:
            while True:
                for message in batch:
                    self._deliver(message)
                    if isinstance(message, messages.Rejected):
                        raise TrackerError(message.reason)
                async with asyncio.timeout(welcome.session_timeout):
                    batch = await session.receive()
        finally:
            self.connected = False  # at once: what is said from here on would be lost

    def _deliver(self, message: FromTracker) -> None:
        if isinstance(message, Welcome):
            check(message, self._me.node)
            self.welcome = message
        if isinstance(message, Welcome | Pong):
            self._size = message.nodes
        self._on_message(message)
        if isinstance(message, Content | Fetch | Absent):
            self._questions.answered(message)

    async def _speak(self, session: Session) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._queue = self._queue, []
            await session.send(batch)

    # --- a better one ---

    async def _doubt(self, finder: Finder, session: Session, watch: Watch) -> Found:
        """A session elsewhere, once this tracker is silent and another one isn't."""
        while True:
            await watch.silence()
            log.warning("the tracker is silent", url=session.place.base)
            async with asyncio.TaskGroup() as tasks:
                search = tasks.create_task(self._search(finder, session))
                heard = tasks.create_task(session.heard.wait())
                await asyncio.wait({search, heard}, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                search.cancel()
            if not search.cancelled():
                return search.result()
            finder.part(session)
            self._tell(True)

    async def _search(self, finder: Finder, session: Session) -> Found:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            places = [place for place in await self._places.ranked() if place != session.place]
            if loop.time() - begun >= HANGING:  # a way that was cut silently, not a tracker that has much to do
                places.append(session.place)
            found = await finder.round(places, self._timeout)
            if found is not None:
                return found
            self._tell(False)
            await self._wait()

    async def _go_home(self, finder: Finder, session: Session) -> Found:
        """A session at this node's first choice, some time after it is there (again), when nothing is under way."""
        while True:
            await asyncio.sleep(self._home * self._reluctance * self._rng.uniform(0.5, 1.5))
            if self._awaiting():
                continue
            places = await self._places.ranked()
            if not places or places[0] == session.place:
                continue
            found = await finder.round(places[:1], CONNECT_TIMEOUT)
            self._reluctance = min(MOST_RELUCTANT, 2 * self._reluctance)  # unless it lasts there
            if found is not None:
                return found
