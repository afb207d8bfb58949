"""The replica that leads: it has the one cluster, and agents behind it on every replica."""

from __future__ import annotations

import asyncio
import random

import structlog

from p2pdist.protocol import messages
from p2pdist.protocol.messages import FromAgent
from tracker.book import BanBook
from tracker.cluster import Cluster
from tracker.config import TrackerSettings
from tracker.orders import OrderDriver
from tracker.replicas.guests import Guest, Source
from tracker.state import State
from tracker.timers import Outbox
from tracker.tokens import Ban

log = structlog.get_logger()


class Leading:
    """Decisions about all agents, as long as this replica leads; `orders.run` has to run so long. Ends with `stop`.

    `epoch`: Unix time when the event loop's clock was 0.
    """

    def __init__(
        self, settings: TrackerSettings, cluster_key: bytes, epoch: float, book: BanBook, state: State
    ) -> None:
        self._settings = settings
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._book = book
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # when it fires, by the loop's clock
        self._stopped = False
        self._via: dict[bytes, Source] = {}
        self.guests: dict[bytes, Guest] = {}
        self.cluster = Cluster(
            settings.swarm, settings.content, settings.bans, random.Random(), self.now(), cluster_key, settings.preheat
        )
        self.orders = OrderDriver(state, self.cluster, settings.preheat, self.now, self.dispatch)
        self.judge()

    def now(self) -> float:
        """Unix time that never goes back."""
        return self._epoch + self._loop.time()

    def stop(self) -> None:
        """Decide nothing any more, and say nothing."""
        self._stopped = True
        self._via.clear()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def nodes(self) -> int:
        """How many agents the cluster has."""
        return self.cluster.size

    def voice(self, source: Source) -> _Voice:
        """The decisions for the sessions of one replica."""
        return _Voice(self, source)

    # --- sessions ---

    def came(self, source: Source, guest: Guest) -> None:
        """An agent's session begins; an older one that it has, wherever, is over."""
        if self._stopped:
            return
        node, now = guest.peer.node, self.now()
        before = self._via.get(node)
        if before is not None and before is not source:
            before.end(node, "the node began another session")
        reason = self._objection(now, node)
        if reason is not None:
            source.tell(node, messages.Rejected(reason))
            return
        self._via[node], self.guests[node] = source, guest
        self.dispatch(self.cluster.connected(now, guest.peer, guest.address, guest.name, guest.labels))

    def _objection(self, now: float, node: bytes) -> str | None:
        until = self.cluster.banned(now, node)
        if until is not None:
            return f"this node is banned until {int(until)} (Unix time): `p2pdist-tracker bans list` says why"
        if node not in self._via and len(self._via) >= self._settings.swarm.max_nodes:
            return "this tracker has all the nodes it may have (swarm.max_nodes)"
        return None

    def said(self, source: Source, node: bytes, heard: list[FromAgent]) -> None:
        """An agent said something; what comes from a session that is over changes nothing."""
        if self._via.get(node) is source:
            now = self.now()
            out: Outbox = []
            for message in heard:
                out += self.cluster.handle(now, node, message)
            self.dispatch(out)

    def went(self, source: Source, node: bytes) -> None:
        """An agent's session is over."""
        if self._via.get(node) is source:
            del self._via[node], self.guests[node]
            self.dispatch(self.cluster.disconnected(self.now(), node))

    def lost(self, source: Source) -> None:
        """A replica is gone, and all sessions with it."""
        for node in [node for node, via in self._via.items() if via is source]:
            self.went(source, node)

    # --- decisions ---

    def dispatch(self, out: Outbox) -> None:
        """Send what the cluster has to say, and look when it is to be asked again."""
        for node, message in out:
            source = self._via.get(node)
            if source is not None:
                source.tell(node, message)
            if isinstance(message, messages.Banned):
                self._keep(message.node)
        self._set_timer()

    def _keep(self, node: bytes) -> None:
        """A ban must survive us."""
        found = self.cluster.bans.sentence(self.now(), node)
        if found is not None:
            self._book.note(Ban(node, found.until, found.reason, found.evidence))

    def judge(self) -> None:
        """Take over the bans that are written down: those of the command line, and of earlier leaders."""
        now = self.now()
        kept, active = self._book.bans(now), self.cluster.bans.active(now)
        out: Outbox = []
        for node, ban in kept.items():
            if active.get(node) != ban.until:
                out += self.cluster.ban(now, node, ban.until, ban.reason, ban.evidence)
        for node in active.keys() - kept.keys():
            out += self.cluster.lift(now, node)
        self.dispatch(out)

    def _set_timer(self) -> None:
        deadline = self.cluster.next_deadline()
        if deadline is None or self._stopped:
            return
        when = deadline - self._epoch
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        self._due = when  # not to be asked of the timer: uvloop's has no time when it is due at once
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch(self.cluster.tick(self.now()))


class _Voice:
    """See `Voice`."""

    def __init__(self, leading: Leading, source: Source) -> None:
        self._leading = leading
        self._source = source

    def came(self, guest: Guest) -> None:
        self._leading.came(self._source, guest)

    def said(self, node: bytes, heard: list[FromAgent]) -> None:
        self._leading.said(self._source, node, heard)

    def went(self, node: bytes) -> None:
        self._leading.went(self._source, node)

    @property
    def nodes(self) -> int:
        return self._leading.nodes
