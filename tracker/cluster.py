"""One cluster as its tracker sees it: swarms, small content and bans behind one door. Pure and synchronous."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from p2pdist.protocol import messages
from p2pdist.protocol.messages import FromAgent, PeerInfo
from tracker.bans import Bans, Sentence, host_of
from tracker.deny import DenyBook
from tracker.jobs import Jobs
from tracker.preheats import PreheatRules
from tracker.rules import BanRules, ContentRules, SwarmRules
from tracker.searches import Searches
from tracker.small import Key, SmallContent
from tracker.swarms import Swarms
from tracker.timers import Outbox
from tracker.trials import Proof, Trials


class Cluster:
    """Hand it what nodes say; it returns what to say to nodes. `now` is Unix time in seconds and never goes back."""

    def __init__(
        self,
        swarm: SwarmRules,
        content: ContentRules,
        bans: BanRules,
        rng: random.Random,
        now: float,
        cluster_key: bytes = b"",
        preheat: PreheatRules | None = None,
    ) -> None:
        self.swarms = Swarms(swarm, rng, now)
        timers = self.swarms.state.timers
        self.content = SmallContent(content, timers)
        self.bans = Bans(bans, now)
        self.trials = Trials(cluster_key, timers, self._guilty, self.bans.mute)
        self.searches = Searches(timers, rng)
        self.jobs = Jobs(preheat or PreheatRules(), rng, now)
        self.denied = DenyBook()
        self._ban_rules = bans
        # each takes the time, the node and the message; the message's type is the key
        self._handlers: dict[type, Callable[[float, bytes, Any], Outbox]] = {
            messages.Holds: self.swarms.holds,
            messages.Drops: self.swarms.drops,
            messages.Join: self.swarms.join,
            messages.Half: self.swarms.half,
            messages.Got: self.swarms.got,
            messages.Failed: self.swarms.failed,
            messages.Returned: self.swarms.returned,
            messages.Done: self.swarms.done,
            messages.Leave: self.swarms.leave,
            messages.Dead: self.swarms.dead,
            messages.Miss: self.swarms.miss,
            messages.More: self.swarms.more,
            messages.Accuse: self._accuse,
            messages.Convict: self._convict,
            messages.Shown: self._shown,
            messages.Doubts: self._doubts,
            messages.Settled: self._settled,
            messages.Ask: self.content.ask,
            messages.Offer: self.content.offer,
            messages.Refuse: self._refuse,
            messages.Ping: self._ping,
            messages.Preheated: self.jobs.heard,
        }

    @property
    def size(self) -> int:
        """How many nodes are connected."""
        return len(self.swarms.state.nodes)

    def banned(self, now: float, node: bytes) -> float | None:
        """When the node may come back; None: now."""
        return self.bans.until(now, node)

    def connected(
        self,
        now: float,
        peer: PeerInfo,
        address: str = "",
        name: str = "",
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> Outbox:
        """A node's session begins; `address` is the host it comes from.

        It learns who is banned, what is denied, and what it has to pull.
        """
        out = self.content.disconnected(now, peer.node)
        out += self._forget(now, peer.node)
        self.bans.hosts.came(host_of(address))
        out += self.swarms.connected(now, peer, address, labels)
        out += [(peer.node, messages.Banned(node, int(end))) for node, end in self.bans.active(now).items()]
        out += [(peer.node, message) for message in self.denied.whole()]
        return out + self.jobs.connected(now, peer.node, name, labels)

    def deny(self, entries: Mapping[str, str]) -> Outbox:
        """The deny list is this now, reasons by subject; every node is told."""
        said = self.denied.replace(entries)
        return [(node, message) for node in self.swarms.state.nodes for message in said]

    def disconnected(self, now: float, node: bytes) -> Outbox:
        """A node's session is over."""
        self.bans.forget_accuser(node)
        out = self._forget(now, node) + self.jobs.disconnected(now, node)
        return out + self.swarms.disconnected(now, node) + self.content.disconnected(now, node)

    def _forget(self, now: float, node: bytes) -> Outbox:
        """A session of the node, if there is one, ends: it shows nothing and searches nothing any more."""
        out: Outbox = []
        known = self.swarms.state.nodes.get(node)
        if known is not None:
            self.bans.hosts.went(now, host_of(known.address))
            self.trials.gone(now, node, out)
            self.searches.gone(now, node, out)
        return out

    def handle(self, now: float, node: bytes, message: FromAgent) -> Outbox:
        """A connected node says something; anything unexpected changes nothing."""
        handler = self._handlers.get(type(message))
        if handler is None or node not in self.swarms.state.nodes:
            return []
        return handler(now, node, message)

    def tick(self, now: float) -> Outbox:
        """Do what is due."""
        return self.swarms.tick(now)

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next; None: never, as things are."""
        return self.swarms.next_deadline()

    def _ping(self, now: float, node: bytes, message: messages.Ping) -> Outbox:
        return [(node, messages.Pong(self.size))]

    def _refuse(self, now: float, node: bytes, message: messages.Refuse) -> Outbox:
        asked = self.content.fetches(node, message.key)
        out = self.content.refuse(now, node, message)
        if asked and message.retry_after > 0:
            out += self.swarms.throttled(now, Key.parse(message.key).registry, message.retry_after)
        return out

    def _accuse(self, now: float, node: bytes, message: messages.Accuse) -> Outbox:
        return self._count(now, node, message.peer)

    def _count(self, now: float, node: bytes, peer: bytes) -> Outbox:
        """An accusation without proof."""
        host = host_of(self.swarms.state.nodes[node].address)
        if not self.bans.accuse(now, node, host, peer):
            return []
        sentence = self.bans.sentence(now, peer)
        return self._shut_out(now, peer, sentence) if sentence is not None else []

    def _convict(self, now: float, node: bytes, message: messages.Convict) -> Outbox:
        """An accusation that can be proved, unless the blob is too large to be shown and nothing else proves it."""
        peer = message.statement.signer.node
        out: Outbox = []
        if message.size > self._ban_rules.proof_bytes and message.other is None:
            return self._count(now, node, peer)
        if self.bans.admits(now, node, peer):
            self.trials.charge(now, node, message, out)
        return out

    def _shown(self, now: float, node: bytes, message: messages.Shown) -> Outbox:
        out: Outbox = []
        self.trials.shown_by(now, node, message, out)
        return out

    def _guilty(self, now: float, proof: Proof, out: Outbox) -> None:
        peer = proof.statement.signer.node
        until = now + self._ban_rules.proved_ban_time
        out += self._shut_out(now, peer, Sentence(until, "it signed what is proved to be false", proof.pack()))

    def _doubts(self, now: float, node: bytes, message: messages.Doubts) -> Outbox:
        out: Outbox = []
        self.searches.doubts(now, node, message, out)
        return out

    def _settled(self, now: float, node: bytes, message: messages.Settled) -> Outbox:
        out: Outbox = []
        self.searches.settled(now, node, message, out)
        return out

    def _shut_out(self, now: float, node: bytes, sentence: Sentence) -> Outbox:
        self.swarms.counters.banned += 1
        return self.ban(now, node, sentence.until, sentence.reason, sentence.evidence)

    def ban(self, now: float, node: bytes, until: float, reason: str, evidence: bytes = b"") -> Outbox:
        """Shut a node out until a time; it and every other node are told at once."""
        self.bans.set(node, Sentence(until, reason, evidence))
        out: Outbox = []
        if node in self.swarms.state.nodes:
            out.append((node, messages.Rejected(f"banned: {reason}")))
            out += self.disconnected(now, node)
        out += [(other, messages.Banned(node, int(until))) for other in self.swarms.state.nodes]
        return out

    def lift(self, now: float, node: bytes) -> Outbox:
        """Let a node in again; every node is told."""
        self.bans.lift(node)
        return [(other, messages.Banned(node, int(now))) for other in self.swarms.state.nodes]
