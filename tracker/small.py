"""Small content and tags: one node asks upstream, the others get its answer. Pure.

`manifest` and `blob` keys name their digest: an answer that doesn't hash to it is refused, so no member can poison
them. A `tag` key's answer must hash to the digest it claims; which digest a tag has, only the upstream knows: it is
fresh for a while, then one node asks again. Bounded by bytes, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

from p2pdist.errors import InvalidDigest, ProtocolError
from p2pdist.oci import Digest
from p2pdist.protocol import messages
from tracker.rules import ContentRules
from tracker.timers import Outbox, Timers

MAX_FETCHERS = 16  # late ones, of a key that nobody brings
OVERHEAD = 512  # bytes of memory for an entry besides its key and data, roughly


@dataclass(frozen=True, slots=True)
class Key:
    """`tag REGISTRY/NAME:TAG`, `manifest REGISTRY/NAME@DIGEST` or `blob REGISTRY/NAME@DIGEST`."""

    text: str
    registry: str
    digest: Digest | None  # None: a tag

    @classmethod
    def parse(cls, text: str) -> Key:
        """ProtocolError if it is none of the three."""
        kind, _, name = text.partition(" ")
        registry, slash, path = name.partition("/")
        if kind not in {"tag", "manifest", "blob"} or not registry or not slash:
            raise ProtocolError(f"not a key of small content: {text!r}")
        if kind == "tag":
            if ":" not in path:
                raise ProtocolError(f"not a key of small content, there is no tag: {text!r}")
            return cls(text, registry, None)
        try:
            return cls(text, registry, Digest.parse(path.rpartition("@")[2]))
        except InvalidDigest as error:
            raise ProtocolError(f"not a key of small content: {text!r}: {error}") from error


@dataclass(slots=True, eq=False)
class Entry:
    """What is known about a key, who is asking upstream, and who waits."""

    key: Key
    answer: messages.Offer | None = None
    fetched: float = 0.0
    stale_until: float = 0.0  # the upstream can't be reached: the old answer will do until then
    absent: int = 0  # the upstream's refusal
    absent_until: float = 0.0
    refusals: dict[bytes, int] = field(default_factory=dict)  # whom the upstream refused, one after the other
    refused_at: float = 0.0
    failures: int = 0
    fetcher: bytes | None = None
    deadline: float = 0.0
    fetchers: dict[bytes, None] = field(default_factory=dict)  # whose answer is welcome, the latest few
    waiters: dict[tuple[bytes, int], None] = field(default_factory=dict)
    bringer: bytes | None = None  # whose answer it is

    @property
    def weight(self) -> int:
        """Bytes of memory, roughly."""
        return OVERHEAD + len(self.key.text) + (len(self.answer.data) if self.answer else 0)

    @property
    def busy(self) -> bool:
        """Whether somebody fetches or waits."""
        return self.fetcher is not None or bool(self.waiters)


class SmallContent:
    """All of one cluster, in memory."""

    def __init__(self, rules: ContentRules, timers: Timers) -> None:
        self._rules = rules
        self._timers = timers
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._asks: dict[bytes, dict[tuple[str, int], None]] = {}  # by node: what it waits for
        self._fetches: dict[bytes, set[str]] = {}  # by node: what it fetches
        self.bytes = 0
        self.hits = 0
        self.fetched = 0
        self.poison = 0  # answers that didn't hash to what they claimed
        self.over_quota = 0
        self._brought: dict[bytes, OrderedDict[str, int]] = {}  # by node: bytes by key, the oldest first
        self._brought_bytes: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def ask(self, now: float, node: bytes, message: messages.Ask) -> Outbox:
        """A node wants the content of a key."""
        try:
            key = Key.parse(message.key)
        except ProtocolError:
            return [(node, messages.Absent(message.id, message.key, 400))]
        entry = self._entries.get(key.text)
        if entry is None:
            entry = self._entries[key.text] = Entry(key)
            self.bytes += entry.weight
        self._entries.move_to_end(key.text)
        if now - entry.refused_at >= self._rules.absent_time:
            entry.refusals.clear()
        out: Outbox = []
        if entry.answer is not None and self._good(now, entry):
            self.hits += 1
            out.append((node, self._content(now, entry, entry.answer, message.id)))
        elif now < entry.absent_until or node in entry.refusals:
            status = entry.refusals.get(node, entry.absent)
            out.append((node, messages.Absent(message.id, message.key, status)))
        elif self._asks_too_much(node):
            self.over_quota += 1
            out.append((node, messages.Absent(message.id, message.key, 0, final=False)))
        elif entry.fetcher is None or entry.fetcher == node:
            self._fetch(now, entry, node, message.id, out)
        else:
            entry.waiters[node, message.id] = None
            self._asks.setdefault(node, {})[key.text, message.id] = None
        self._evict()
        return out

    def offer(self, now: float, node: bytes, message: messages.Offer) -> Outbox:
        """What a fetch brought."""
        out: Outbox = []
        entry = self._entries.get(message.key)
        if entry is None or node not in entry.fetchers:
            return out
        if not _true(entry.key, message):
            self.poison += 1
            entry.fetchers.pop(node, None)
            if entry.fetcher == node:
                self._failed(now, entry, 0, out)
            return out
        self.bytes -= entry.weight
        entry.answer = message
        self.bytes += entry.weight
        self._charge(entry, node)
        entry.fetched = now
        entry.absent_until = entry.stale_until = 0.0
        entry.failures = 0
        entry.refusals.clear()
        entry.fetchers.clear()
        self._release(entry)
        self.fetched += 1
        self._answer(now, entry, out)
        self._evict()
        return out

    def refuse(self, now: float, node: bytes, message: messages.Refuse) -> Outbox:
        """A fetch failed. One node's word that there is nothing makes the next one ask; two are believed."""
        out: Outbox = []
        entry = self._entries.get(message.key)
        if entry is None or entry.fetcher != node:
            return out
        entry.fetchers.pop(node, None)
        if not message.final:
            self._failed(now, entry, message.status, out)
            return out
        entry.refusals[node] = message.status
        entry.refused_at = now
        if len(entry.refusals) < self._rules.absent_votes:
            self._next(now, entry, out)
            return out
        entry.absent, entry.absent_until = message.status, now + self._rules.absent_time
        self._discharge(entry)
        self.bytes -= entry.weight
        entry.answer = None
        self.bytes += entry.weight
        self._release(entry)
        self._absent(entry, message.status, True, out)
        return out

    def fetches(self, node: bytes, key: str) -> bool:
        """Whether the node is the one that asks upstream for the key."""
        return key in self._fetches.get(node, ())

    def disconnected(self, now: float, node: bytes) -> Outbox:
        """A node is gone: what it fetched is fetched by the next one that waits."""
        out: Outbox = []
        for text, number in self._asks.pop(node, {}):
            if text in self._entries:
                self._entries[text].waiters.pop((node, number), None)
        for text in self._fetches.pop(node, set()):
            entry = self._entries[text]
            entry.fetchers.pop(node, None)
            self._next(now, entry, out)
        return out

    # --- shares ---

    def _asks_too_much(self, node: bytes) -> bool:
        most = self._rules.max_asks_per_node
        return len(self._asks.get(node, ())) >= most or len(self._fetches.get(node, ())) >= most

    def _charge(self, entry: Entry, node: bytes) -> None:
        """The answer is this node's: it takes room from its own share, not from the others'."""
        self._discharge(entry)
        size = len(entry.answer.data) if entry.answer is not None else 0
        if size == 0:
            return
        entry.bringer = node
        mine = self._brought.setdefault(node, OrderedDict())
        mine[entry.key.text] = size
        self._brought_bytes[node] = self._brought_bytes.get(node, 0) + size
        while self._brought_bytes.get(node, 0) > self._rules.max_bytes_per_node and len(mine) > 1:
            self.over_quota += 1
            oldest = self._entries[next(iter(mine))]
            self._discharge(oldest)
            self.bytes -= oldest.weight
            oldest.answer = None
            self.bytes += oldest.weight

    def _discharge(self, entry: Entry) -> None:
        node, entry.bringer = entry.bringer, None
        if node is None:
            return
        mine = self._brought[node]
        self._brought_bytes[node] -= mine.pop(entry.key.text)
        if not mine:
            del self._brought[node], self._brought_bytes[node]

    # --- steps ---

    def _good(self, now: float, entry: Entry) -> bool:
        fresh = entry.key.digest is not None or now - entry.fetched < self._rules.tag_refresh
        return fresh or now < entry.stale_until

    def _content(self, now: float, entry: Entry, answer: messages.Offer, number: int) -> messages.Content:
        stale = entry.key.digest is None and now - entry.fetched >= self._rules.tag_refresh
        return messages.Content(
            number, answer.key, answer.digest, answer.media_type, answer.size, answer.data, stale=stale
        )

    def _fetch(self, now: float, entry: Entry, node: bytes, number: int, out: Outbox) -> None:
        entry.fetcher = node
        entry.fetchers[node] = None
        if len(entry.fetchers) > MAX_FETCHERS:
            del entry.fetchers[next(iter(entry.fetchers))]
        entry.deadline = now + self._rules.fetch_timeout
        self._fetches.setdefault(node, set()).add(entry.key.text)
        self._timers.at(entry.deadline, partial(self._expire, entry, node))
        out.append((node, messages.Fetch(number, entry.key.text)))

    def _expire(self, entry: Entry, node: bytes, now: float, out: Outbox) -> None:
        if entry.fetcher == node and now >= entry.deadline:
            self._next(now, entry, out)  # its answer is still welcome

    def _release(self, entry: Entry) -> None:
        if entry.fetcher is None:
            return
        keys = self._fetches.get(entry.fetcher)
        if keys is not None:
            keys.discard(entry.key.text)
            if not keys:
                del self._fetches[entry.fetcher]
        entry.fetcher = None

    def _next(self, now: float, entry: Entry, out: Outbox) -> None:
        """The next one that waits asks upstream."""
        self._release(entry)
        if entry.waiters:
            node, number = next(iter(entry.waiters))
            self._forget(entry, node, number)
            self._fetch(now, entry, node, number, out)

    def _failed(self, now: float, entry: Entry, status: int, out: Outbox) -> None:
        """The upstream couldn't be reached, or lied."""
        if entry.answer is not None:
            entry.stale_until = now + self._rules.fetch_timeout
            self._release(entry)
            self._answer(now, entry, out)
            return
        entry.failures += 1
        if entry.failures < self._rules.tries:
            self._next(now, entry, out)
            return
        entry.failures = 0
        self._release(entry)
        self._absent(entry, status, False, out)

    def _answer(self, now: float, entry: Entry, out: Outbox) -> None:
        if entry.answer is None:
            return
        for node, number in list(entry.waiters):
            self._forget(entry, node, number)
            self.hits += 1
            out.append((node, self._content(now, entry, entry.answer, number)))

    def _absent(self, entry: Entry, status: int, final: bool, out: Outbox) -> None:
        for node, number in list(entry.waiters):
            self._forget(entry, node, number)
            out.append((node, messages.Absent(number, entry.key.text, status, final=final)))

    def _forget(self, entry: Entry, node: bytes, number: int) -> None:
        entry.waiters.pop((node, number), None)
        asks = self._asks.get(node)
        if asks is not None:
            asks.pop((entry.key.text, number), None)
            if not asks:
                del self._asks[node]

    def _evict(self) -> None:
        for _ in range(len(self._entries)):
            if self.bytes <= self._rules.max_bytes:
                return
            text, entry = self._entries.popitem(last=False)
            if entry.busy:
                self._entries[text] = entry
            else:
                self._discharge(entry)
                self.bytes -= entry.weight


def _true(key: Key, offer: messages.Offer) -> bool:
    """Whether the offer's data is what its digest says, and the digest what the key says."""
    try:
        digest = Digest.parse(offer.digest)
    except InvalidDigest:
        return False
    if key.digest is not None and key.digest != digest:
        return False
    if not offer.data and offer.size:  # too large to hold
        return True
    return len(offer.data) == offer.size and Digest.of(offer.data, digest.algorithm) == digest
