"""A BitTorrent tracker for exported images: ordinary clients find each other and the nodes that seed.

BEP 3 (announce over HTTP), BEP 23 (compact peers), BEP 7 (peers6), BEP 48 (scrape). A pure core and an HTTP port of its
own without TLS, because ordinary clients have no certificate of the cluster; off unless a port is configured. It tells
addresses only, never what is in a torrent; peers are believed nothing but their port: the address is where they come
from.
"""

from __future__ import annotations

import ipaddress
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote_to_bytes

from aiohttp import web

from p2pdist.errors import ConfigError, InputError
from p2pdist.protocol.bencode import Bencodable, encode
from tracker.ownport import OwnPort
from tracker.rules import option

HASH = 20  # bytes of an info-hash and of a peer id
_QUERY = 2048  # characters of a query that are looked at
_SCRAPES = 64  # torrents in one scrape
_EVENTS = frozenset({b"", b"started", b"completed", b"stopped", b"empty"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceRules:
    """The BitTorrent tracker for exported images. Times in seconds."""

    host: str = option("127.0.0.1", "address on which BitTorrent clients announce; 0.0.0.0 for all")
    port: int = option(
        0, "HTTP port for their announces (/announce, without TLS); 0: no such service", least=0, most=65535
    )
    torrents: str = option(
        "", "info-hashes in hex that are served, separated by commas (p2pdist torrent export prints it); empty: any"
    )
    interval: float = option(120.0, "seconds between two announces of a client", least=10)
    max_torrents: int = option(10_000, "torrents at once; the one longest without an announce is forgotten first")
    max_peers: int = option(2_000, "clients of one torrent; the one longest silent is forgotten first")
    numwant: int = option(50, "peers told to a client, at most")

    @property
    def allowed(self) -> frozenset[bytes]:
        """The info-hashes of `torrents`; none: any. ConfigError."""
        try:
            hashes = frozenset(bytes.fromhex(text.strip()) for text in self.torrents.split(",") if text.strip())
        except ValueError as error:
            raise ConfigError(f"announce.torrents: not info-hashes in hex: {error}") from error
        if any(len(one) != HASH for one in hashes):
            raise ConfigError("announce.torrents: an info-hash has 40 hex digits")
        return hashes


@dataclass(frozen=True, slots=True)
class Announce:
    """One announce; `address` is where it came from."""

    info_hash: bytes
    peer_id: bytes
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    left: int | None = None
    event: bytes = b""
    numwant: int | None = None
    compact: bool = True
    no_peer_id: bool = False

    @property
    def packed(self) -> bytes:
        """The compact form (BEP 23: 6 bytes, BEP 7: 18 bytes)."""
        return self.address.packed + self.port.to_bytes(2, "big")


@dataclass(slots=True)
class _Torrent:
    peers: OrderedDict[tuple[bytes, int], tuple[Announce, float]] = field(default_factory=OrderedDict)
    completed: int = 0


class Announces:
    """Who has which torrent. Pure: time (seconds, any origin) and randomness are given."""

    def __init__(self, rules: AnnounceRules, rng: random.Random) -> None:
        self._rules = rules
        self._allowed = rules.allowed
        self._rng = rng
        self._torrents: OrderedDict[bytes, _Torrent] = OrderedDict()

    def announce(self, now: float, said: Announce) -> bytes:
        """The bencoded answer. InputError: a torrent that is not served."""
        self._must_serve(said.info_hash)
        torrent = self._torrents.setdefault(said.info_hash, _Torrent())
        self._torrents.move_to_end(said.info_hash)
        if len(self._torrents) > self._rules.max_torrents:
            self._torrents.popitem(last=False)
        self._expire(torrent, now)
        key = (said.packed, said.address.version)  # one client per address and port: an id alone could be anybody's
        if said.event == b"stopped":
            torrent.peers.pop(key, None)
            others: list[Announce] = []
        else:
            torrent.completed += said.event == b"completed"
            torrent.peers[key] = (said, now)
            torrent.peers.move_to_end(key)
            if len(torrent.peers) > self._rules.max_peers:
                torrent.peers.popitem(last=False)
            others = self._others(torrent, said)
        return encode(self._answer(torrent, said, others))

    def scrape(self, now: float, info_hashes: Iterable[bytes]) -> bytes:
        """The bencoded counts (BEP 48). InputError: a torrent that is not served."""
        files: dict[bytes, Bencodable] = {}
        for info_hash in info_hashes:
            self._must_serve(info_hash)
            torrent = self._torrents.get(info_hash, _Torrent())
            self._expire(torrent, now)
            seeds = _seeds(torrent)
            files[info_hash] = {
                b"complete": seeds,
                b"downloaded": torrent.completed,
                b"incomplete": len(torrent.peers) - seeds,
            }
        return encode({b"files": files})

    def _must_serve(self, info_hash: bytes) -> None:
        if self._allowed and info_hash not in self._allowed:
            raise InputError("this tracker does not serve this torrent")

    def _expire(self, torrent: _Torrent, now: float) -> None:
        while torrent.peers:
            key, (_, seen) = next(iter(torrent.peers.items()))
            if now - seen <= 2 * self._rules.interval:
                return
            del torrent.peers[key]

    def _others(self, torrent: _Torrent, said: Announce) -> list[Announce]:
        """A random choice of other clients, of both address families; a seed is told of no seeds."""
        wanted = self._rules.numwant if said.numwant is None else max(0, min(said.numwant, self._rules.numwant))
        candidates = [
            other
            for other, _ in torrent.peers.values()
            if other.packed != said.packed and not (said.left == 0 and other.left == 0)
        ]
        return candidates if len(candidates) <= wanted else self._rng.sample(candidates, wanted)

    def _answer(self, torrent: _Torrent, said: Announce, others: list[Announce]) -> dict[bytes, Bencodable]:
        seeds = _seeds(torrent)
        answer: dict[bytes, Bencodable] = {
            b"complete": seeds,
            b"incomplete": len(torrent.peers) - seeds,
            b"interval": int(self._rules.interval),
            b"min interval": int(self._rules.interval / 2),
        }
        if said.compact:
            answer[b"peers"] = b"".join(other.packed for other in others if other.address.version == 4)
            answer[b"peers6"] = b"".join(other.packed for other in others if other.address.version == 6)
        else:
            answer[b"peers"] = [_entry(other, said.no_peer_id) for other in others]
        return answer


def _seeds(torrent: _Torrent) -> int:
    return sum(peer.left == 0 for peer, _ in torrent.peers.values())


def _entry(peer: Announce, no_peer_id: bool) -> dict[bytes, Bencodable]:
    entry: dict[bytes, Bencodable] = {b"ip": str(peer.address).encode(), b"port": peer.port}
    if not no_peer_id:
        entry[b"peer id"] = peer.peer_id
    return entry


def parse_announce(query: str, remote: str) -> Announce:
    """The announce in a raw query string (its bytes are not UTF-8) that came from the address `remote`. InputError."""
    values = _values(query)
    last = {name: found[-1] for name, found in values.items()}
    port = _number(last, b"port", 65_535)
    if not port:
        raise InputError("an announce needs a port from 1 to 65535")
    event = last.get(b"event", b"")
    if event not in _EVENTS:
        raise InputError("event is started, completed or stopped")
    return Announce(
        _hash(last, b"info_hash"),
        _hash(last, b"peer_id"),
        _address(remote),
        port,
        _number(last, b"left", 2**63),
        event,
        _number(last, b"numwant", 2**31),
        last.get(b"compact", b"1") != b"0",
        last.get(b"no_peer_id", b"0") == b"1",
    )


def parse_scrape(query: str) -> list[bytes]:
    """The info-hashes in a raw query string. InputError."""
    found = _values(query).get(b"info_hash", [])
    if not 0 < len(found) <= _SCRAPES or any(len(one) != HASH for one in found):
        raise InputError(f"a scrape names 1 to {_SCRAPES} info-hashes of {HASH} bytes")
    return found


def _values(query: str) -> Mapping[bytes, list[bytes]]:
    if len(query) > _QUERY:
        raise InputError(f"a query of over {_QUERY} characters")
    values: dict[bytes, list[bytes]] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        values.setdefault(unquote_to_bytes(name), []).append(unquote_to_bytes(value))
    return values


def _hash(values: Mapping[bytes, bytes], name: bytes) -> bytes:
    value = values.get(name, b"")
    if len(value) != HASH:
        raise InputError(f"{name.decode()} has {HASH} bytes; got {len(value)}")
    return value


def _number(values: Mapping[bytes, bytes], name: bytes, most: int) -> int | None:
    """A number from 0 to `most`; None where it is missing or none (some clients send -1)."""
    text = values.get(name, b"")
    number = int(text) if text.isdigit() and len(text) <= 20 else None
    return number if number is not None and number <= most else None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError as error:
        raise InputError(f"not an address: {text[:60]}") from error
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class AnnounceServer:
    """Listens as the rules say while the context lasts; does nothing where they give no port.

    Raises (on entering):
        OperationError: the address can't be listened on.
        ConfigError: `torrents` can't be read.
    """

    def __init__(self, rules: AnnounceRules, now: Callable[[], float], rng: random.Random | None = None) -> None:
        self.port = 0
        self._rules = rules
        self._now = now
        self._announces = Announces(rules, rng or random.Random())
        self._own: OwnPort | None = None

    def routes(self, app: web.Application) -> None:
        """Mount it."""
        app.router.add_get("/announce", self._announce)
        app.router.add_get("/scrape", self._scrape)

    async def __aenter__(self) -> Self:
        if not self._rules.port:
            return self
        app = web.Application()
        self.routes(app)
        host, port = self._rules.host, self._rules.port
        self._own = await OwnPort(
            app, host, port, f"can't listen on {host}:{port} (announce.port)", backlog=256
        ).__aenter__()
        self.port = self._own.port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            await self._own.__aexit__(kind, error, trace)

    async def _announce(self, request: web.Request) -> web.Response:
        return self._answer(
            lambda query: self._announces.announce(self._now(), parse_announce(query, request.remote or "")), request
        )

    async def _scrape(self, request: web.Request) -> web.Response:
        return self._answer(lambda query: self._announces.scrape(self._now(), parse_scrape(query)), request)

    def _answer(self, work: Callable[[str], bytes], request: web.Request) -> web.Response:
        try:
            body = work(request.rel_url.raw_query_string)
        except InputError as error:
            body = encode({b"failure reason": str(error).encode()})  # BEP 3: with status 200
        return web.Response(body=body, content_type="text/plain")
