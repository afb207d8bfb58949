"""Which torrents libtorrent has loaded, and what goes in and out of them.

Two sessions: in the cold one libtorrent takes whatever comes (nobody knows the hashes yet, the engine proves it); in
the other it checks pieces itself. What should be loaded is said by `Live.want` and `Live.dirty`; one task per blob
makes it so, one step after the other. There is no way to make libtorrent forget a piece: the torrent is unloaded and
loaded again with the proved ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog

from p2pdist.errors import StorageError
from p2pdist.scope import Scope
from p2pdist.torrent.alone import bits
from p2pdist.torrent.blame import Sender
from p2pdist.torrent.files import copy_chunks, scratch
from p2pdist.torrent.live import COLD, MAPPED, Live, Loaded
from p2pdist.torrent.metainfo import of_blob
from p2pdist.torrent.pieces import Pieces, PiecesOwner
from p2pdist.torrent.session import Remote, Session
from p2pdist.torrent.settings import TorrentSettings

T = TypeVar("T")
_log = structlog.get_logger("p2pdist.torrent")
_STEP = 10.0  # seconds that libtorrent may take to load or unload a torrent
_RETRY = 2.0  # seconds before a torrent that failed is loaded again
_BATCH = 0.05  # seconds in which refused chunks are collected before the torrent is loaded anew
_PACE = 0.1  # seconds between two looks at what libtorrent says, in the middle of a transfer


class TorrentsOwner(PiecesOwner, Protocol):
    """Who is told, and asked."""

    def torrents_changed(self, live: Live) -> None:
        """Other torrents of the blob take peers now."""

    def dropped(self, live: Live, indexes: Iterable[int]) -> None:
        """libtorrent had these pieces and forgot them before they were proved."""

    def flushed(self, live: Live) -> None:
        """There may be pieces to prove."""

    def who(self, remote: Remote) -> Sender:
        """The node at the other end, as far as it is known."""

    def claims(self, live: Live, sender: Sender, index: int) -> bool:
        """Whether it says that it proved the chunk."""

    def found(self, host: str, port: int) -> None:
        """libtorrent found a peer by itself; its control links are on `port`."""


class Torrents:
    """See the module."""

    def __init__(self, owner: TorrentsOwner, settings: TorrentSettings, peer_id: str, pool: ThreadPoolExecutor) -> None:
        self._owner = owner
        self._settings = settings
        self._pool = pool
        self._keys: dict[bytes, tuple[Live, Loaded]] = {}
        self._lives: set[Live] = set()  # those whose files are open
        self._stopped = False
        self.watched = False
        self.pieces = Pieces(owner, settings.flush, pool)
        self.sessions = {
            COLD: Session(settings, peer_id, self, checks=False),
            MAPPED: Session(settings, peer_id, self, checks=True),
        }

    async def start(self, port: int, scope: Scope) -> None:
        """Listen on the ports behind `port`. OperationError if that can't be."""
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        self.pieces.start(scope)
        for kind, session in self.sessions.items():
            await session.start(port + kind, self._pool)

    def halt(self) -> None:
        """Load and unload nothing any more."""
        self._stopped = True

    async def stop(self) -> None:
        """Close both sessions, then the files that they used. Halted before, and the scope's tasks have ended."""
        for session in self.sessions.values():
            await session.close()
        for live in self._lives:
            await self._in_thread(live.close)  # behind what the thread still does with the files
        self._lives.clear()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._pool, work)

    # --- loading -------------------------------------------------------------------------------------------------

    def settle(self, live: Live) -> None:
        """Load and unload until it is as `live` says."""
        self._lives.add(live)
        if not live.settling and not self._stopped:
            live.settling = True
            self._scope.spawn(self._settle(live))

    def load_anew(self, live: Live) -> None:
        """What libtorrent has of the blob is not what was proved."""
        if not live.dirty:
            _log.info("a torrent is loaded anew", digest=live.exchange.name)
            live.dirty = True
            self._loop.call_later(_BATCH, self.settle, live)

    async def _settle(self, live: Live) -> None:
        try:
            while True:
                for kind, loaded in list(live.loaded.items()):
                    if live.gone or live.dirty or not live.want & kind:
                        await self._unload(live, kind, loaded)
                if not live.loaded:
                    live.dirty = False
                    self._owner.dropped(live, bits(live.arrived & ~live.sound))
                    live.reset()
                    if live.scratch >= 0 and not live.fetching:
                        await self._in_thread(live.close_scratch)
                missing = live.want & ~sum(live.loaded)
                if live.gone or not missing:
                    break
                await self._load(live, missing & -missing)
                if live.retry_at is not None:
                    break
        finally:
            live.settling = False
        if live.gone:
            self._lives.discard(live)
            await self._in_thread(live.close)
        elif live.dirty and live.retry_at is None:
            self.settle(live)

    async def _load(self, live: Live, kind: int) -> None:
        try:
            if live.fetching:
                await self._in_thread(lambda: _prepare(live, self._settings))
                live.arrived = live.sound
        except StorageError as error:
            self._failed(live, str(error))
            return
        exchange, tls = live.exchange, self._settings.tls
        hashes = live.hashes if kind == MAPPED else b""
        material = tls.material() if tls is not None else None
        if tls is not None and material is None:
            self._failed(live, "this node has no certificate yet")
            return
        cluster, name = (material.cluster, tls.name) if material is not None and tls is not None else ("", "")
        metainfo = of_blob(exchange.digest, exchange.size, exchange.chunk_size, hashes, cluster=cluster, name=name)
        await self._let_go(metainfo.key)
        session = self.sessions[kind]
        loaded = Loaded(session, metainfo, kind, self._loop.create_future(), self._loop.create_future())
        have = _flags(live.sound if live.fetching else exchange.full, exchange.count)
        fd = live.scratch if live.fetching else live.source
        live.loaded[kind] = loaded
        self._keys[metainfo.key] = (live, loaded)
        authority = material.authority if material is not None else ""
        session.add(metainfo.data, fd, have, authority=authority, only_give=not live.fetching)
        try:
            async with asyncio.timeout(_STEP):
                await loaded.ready
        except TimeoutError:
            self._failed(live, "libtorrent did not take it in time")
            return
        if not loaded.usable:
            return
        for index in bits(exchange.have & ~live.arrived):
            self.pieces.give(live, index)
        self._owner.torrents_changed(live)

    async def _let_go(self, key: bytes) -> None:
        """Wait until an earlier exchange of the same blob has left this torrent."""
        while key in self._keys:
            _, earlier = self._keys[key]
            try:
                async with asyncio.timeout(_STEP):
                    await asyncio.shield(earlier.removed)
            except TimeoutError:
                self._keys.pop(key, None)  # `_unload` has said so

    def _failed(self, live: Live, why: str) -> None:
        _log.warning("a torrent stands still", digest=live.exchange.name, error=why)
        live.dirty = True
        live.retry_at = self._loop.time() + _RETRY

    async def _unload(self, live: Live, kind: int, loaded: Loaded) -> None:
        del live.loaded[kind]
        self._owner.torrents_changed(live)
        remove = loaded.session.remover(loaded.metainfo.key)
        try:
            async with asyncio.timeout(_STEP):
                await self._in_thread(remove)  # behind the pieces that are being given
                await loaded.removed
        except TimeoutError:
            _log.error("libtorrent does not let go of a torrent", digest=live.exchange.name)

    # --- pieces --------------------------------------------------------------------------------------------------

    def connect(self, live: Live, peers: Sequence[tuple[str, int]]) -> None:
        """Dial peers; hosts, and the ports of their control links."""
        loaded = live.current
        if loaded is not None and peers:
            addresses = [(host, port + loaded.kind) for host, port in peers]
            loaded.session.connect(loaded.metainfo.key, addresses, at_once=not live.connections)

    def watch(self, on: bool) -> None:
        """Notice who sends which block, or no longer."""
        if on != self.watched:
            self.watched = on
            for session in self.sessions.values():
                session.watch(on)

    # --- what the sessions say -----------------------------------------------------------------------------------

    def torrent_ready(self, key: bytes) -> None:
        """See `SessionOwner`."""
        known = self._keys.get(key)
        if known is not None and not known[1].ready.done():
            known[1].ready.set_result(True)

    def torrent_removed(self, key: bytes) -> None:
        """See `SessionOwner`."""
        known = self._keys.pop(key, None)
        if known is not None and not known[1].removed.done():
            known[1].removed.set_result(None)

    def torrent_failed(self, key: bytes, why: str) -> None:
        """See `SessionOwner`."""
        known = self._keys.get(key)
        if known is None:
            return
        live, loaded = known
        if not loaded.ready.done():
            loaded.ready.set_result(False)
        self._failed(live, why)

    def torrent_piece(self, key: bytes, index: int) -> None:
        """See `SessionOwner`."""
        live = self._fetching(key)
        if live is not None and live.piece(index, self._loop.time()):
            self.pieces.moved(live)

    def torrent_flushed(self, key: bytes) -> None:
        """See `SessionOwner`."""
        live = self._fetching(key)
        if live is not None:
            live.flush_over(self._loop.time())
            self.pieces.moved(live)

    def torrents_looked(self) -> None:
        """See `SessionOwner`."""
        for live in self.pieces.looked():
            self._owner.flushed(live)

    def torrents_pace(self) -> float:
        """See `SessionOwner`. Waking up for a piece costs more than the piece; beginnings and ends are waited for."""
        fetched = [(live, loaded) for live, loaded in self._keys.values() if live.fetching and not live.gone]
        busy = bool(fetched) and all(loaded.usable and not live.ending for live, loaded in fetched)
        return _PACE if busy else 0.0

    def torrent_asked(self, key: bytes, index: int, block: int, remote: Remote) -> None:
        """See `SessionOwner`."""
        live = self._fetching(key)
        if live is not None:
            sender = self._owner.who(remote)
            live.blame.asked(index, block, sender, self._owner.claims(live, sender, index))

    def torrent_block(self, key: bytes, index: int, block: int, remote: Remote) -> None:
        """See `SessionOwner`."""
        live = self._fetching(key)
        if live is not None and remote.port and not live.sound >> index & 1:  # no port: what this node gave
            live.blame.came(index, block, self._owner.who(remote))

    def torrent_connected(self, key: bytes, remote: Remote, outgoing: bool) -> None:
        """See `SessionOwner`."""
        known = self._keys.get(key)
        if known is not None:
            known[0].connections += 1
            if outgoing:
                self._owner.found(remote.host, remote.port - known[1].kind)

    def torrent_disconnected(self, key: bytes, remote: Remote) -> None:
        """See `SessionOwner`."""
        known = self._keys.get(key)
        if known is not None:
            known[0].connections = max(0, known[0].connections - 1)

    def _fetching(self, key: bytes) -> Live | None:
        known = self._keys.get(key)
        return known[0] if known is not None and known[0].fetching and known[1].usable else None


def _prepare(live: Live, settings: TorrentSettings) -> None:
    """Make the scratch file hold all proved chunks. For the engine's thread."""
    if live.scratch < 0:
        live.scratch = scratch(settings.directory, live.exchange.size)
    have = live.exchange.have
    copy_chunks(live.source, live.scratch, live.cut, bits(have & ~live.sound))
    live.sound |= have


def _flags(mask: int, count: int) -> list[bool]:
    return [bit == "1" for bit in reversed(f"{mask:0{count}b}")]
