"""One libtorrent session on asyncio: its alerts come in through a socket pair, no call waits for its thread.

libtorrent's synchronous calls were seen to block the loop for 118 ms: what has no asynchronous form (constructor,
destructor, peer classes) runs in a thread, everything else is posted and its outcome learnt from alerts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import libtorrent as lt
import structlog

from p2pdist.errors import OperationError
from p2pdist.torrent.making import certify, make_session
from p2pdist.torrent.settings import TorrentSettings, alert_mask, session_settings

_log = structlog.get_logger("p2pdist.torrent")
_LISTEN = 5.0  # seconds in which libtorrent must have opened its port
_FILES = "/proc/self/fd"  # a torrent's file is named by an open descriptor: no path leads to a stale or foreign file
_FLAGS = (lt.torrent_flags.default_flags & ~lt.torrent_flags.auto_managed & ~lt.torrent_flags.paused) | (
    lt.torrent_flags.no_verify_files
)


@dataclass(frozen=True, slots=True)
class Remote:
    """The other end of a BitTorrent connection; `peer_id` (20 bytes) is what it says of itself, zeros before that."""

    host: str
    port: int
    peer_id: bytes


class SessionOwner(Protocol):
    """Who is told what happens, on the loop. `key`: the torrent's info-hash (20 bytes)."""

    def torrent_ready(self, key: bytes) -> None:
        """It takes peers and pieces now."""

    def torrent_removed(self, key: bytes) -> None:
        """libtorrent has let go of its file."""

    def torrent_failed(self, key: bytes, why: str) -> None:
        """It stands still: the disk, or TLS."""

    def torrent_piece(self, key: bytes, index: int) -> None:
        """All of a piece came (or was there when it was added). Not necessarily in the file yet."""

    def torrent_flushed(self, key: bytes) -> None:
        """What came before the flush was asked for is in the file."""

    def torrent_asked(self, key: bytes, index: int, block: int, remote: Remote) -> None:
        """A block was asked of `remote`. Only told while watched."""

    def torrent_block(self, key: bytes, index: int, block: int, remote: Remote) -> None:
        """A block that `remote` sent is in the file. Only told while watched."""

    def torrent_connected(self, key: bytes, remote: Remote, outgoing: bool) -> None:
        """A connection is open."""

    def torrent_disconnected(self, key: bytes, remote: Remote) -> None:
        """It is closed."""

    def torrents_looked(self) -> None:
        """That is all that there is to be told at the moment."""

    def torrents_pace(self) -> float:
        """In how many seconds from one time to the next it is enough to be told."""


class Session:
    """See the module. Everything but `start` and `close` returns at once."""

    def __init__(self, settings: TorrentSettings, peer_id: str, owner: SessionOwner, *, checks: bool) -> None:
        self.counters: dict[str, int] = {}  # libtorrent's own, as of the last `post_counters`
        self._settings = settings
        self._peer_id = peer_id
        self._owner = owner
        self._checks = checks
        self._handles: dict[bytes, lt.torrent_handle] = {}
        self._unwanted: set[bytes] = set()  # removed before they were there
        self._checked: set[bytes] = set()  # ready before they were announced
        self._session: lt.session | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._looked = 0.0

    async def start(self, port: int, pool: ThreadPoolExecutor) -> None:
        """Listen on `port`. OperationError if that can't be."""
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._listening: asyncio.Future[None] = self._loop.create_future()
        pack = session_settings(self._settings, port, self._peer_id, checks=self._checks)
        self._session = await self._loop.run_in_executor(pool, make_session, pack, self._settings.wan)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._session.set_alert_fd(self._writer.fileno())
        self._loop.add_reader(self._reader.fileno(), self._woken)
        self._look()
        try:
            async with asyncio.timeout(_LISTEN):
                await self._listening
        except TimeoutError as error:
            await self.close()
            raise OperationError(f"libtorrent does not listen on {self._settings.host}:{port}") from error
        except OperationError:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave every swarm and close every connection; files are let go of when it returns."""
        if self._session is None:
            return
        session, self._session = self._session, None
        if self._looking is not None:
            self._looking.cancel()
        self._loop.remove_reader(self._reader.fileno())
        session.set_alert_fd(-1)
        self._handles.clear()
        holder = [session]
        del session
        await self._loop.run_in_executor(self._pool, holder.clear)  # the destructor waits for libtorrent's threads
        self._reader.close()
        self._writer.close()

    # --- torrents ------------------------------------------------------------------------------------------------

    def add(self, metainfo: bytes, fd: int, have: list[bool], *, authority: str = "", only_give: bool = False) -> None:
        """Load a torrent on the file that `fd` is; it must stay open until `torrent_removed`.

        `have` is believed (and must be given: without it, a file that exists is taken for complete). `authority`: PEM,
        peers need a certificate of it. `only_give`: nothing is ever written.
        """
        assert self._session is not None
        parameters = lt.load_torrent_buffer(metainfo)
        parameters.save_path = _FILES
        parameters.renamed_files = {0: str(fd)}
        parameters.have_pieces = have
        parameters.root_certificate = authority
        parameters.flags = _FLAGS | (lt.torrent_flags.upload_mode if only_give else 0)
        if not self._settings.discover:
            parameters.flags |= lt.torrent_flags.disable_pex | lt.torrent_flags.disable_lsd
        self._session.async_add_torrent(parameters)

    def remover(self, key: bytes) -> Callable[[], None]:
        """What unloads a torrent; `torrent_removed` follows, and only then the same torrent can be added again.

        For the thread in which pieces are given: a piece given to a torrent that is removed kills 2.1.1 (its storage is
        gone by then). Nothing else can be asked of the torrent from now on.
        """
        handle = self._handles.pop(key, None)
        self._checked.discard(key)
        session = self._session
        if handle is None or session is None:
            self._unwanted.add(key)
            return lambda: None
        return partial(session.remove_torrent, handle)

    def connect(self, key: bytes, addresses: Iterable[tuple[str, int]], *, at_once: bool) -> None:
        """Dial peers, now and whenever their connections are lost.

        libtorrent dials at its next full second, unless a torrent just begins. `at_once`: it begins again, which closes
        the connections that it has.
        """
        handle = self._handles.get(key)
        if handle is None:
            return
        for address in addresses:
            handle.connect_peer(address)
        if at_once:
            handle.pause()
            handle.resume()

    def flush(self, key: bytes) -> None:
        """`torrent_flushed` follows once what came until now is in the file."""
        handle = self._handles.get(key)
        if handle is not None:
            handle.flush_cache()

    def injector(self, key: bytes) -> Callable[[int, bytes], None] | None:
        """What gives a piece to a ready torrent, for use in a thread; `torrent_piece` is the only sign of success."""
        handle = self._handles.get(key)
        if handle is None:
            return None
        return lambda index, data: handle.add_piece(index, data, 0)

    def block(self, hosts: Iterable[str]) -> None:
        """Drop the connections with these hosts and refuse new ones; replaces what was said before."""
        rules = lt.ip_filter()
        for host in hosts:
            rules.add_rule(host, host, 1)
        if self._session is not None:
            self._session.set_ip_filter(rules)

    def certify(self) -> None:
        """This node's certificate was renewed: new connections show the new one."""
        for handle in self._handles.values():
            certify(handle, self._settings.tls)

    def watch(self, on: bool) -> None:
        """From now on (or no longer) `torrent_asked` and `torrent_block` are told."""
        if self._session is not None:
            self._session.apply_settings({"alert_mask": alert_mask(watch=on)})

    def post_counters(self) -> None:
        """Bring `counters` up to date, soon."""
        if self._session is not None:
            self._session.post_session_stats()

    # --- alerts --------------------------------------------------------------------------------------------------

    def _woken(self) -> None:
        """There are alerts where there were none; libtorrent says so once until they are taken."""
        with suppress(BlockingIOError):
            self._reader.recv(65536)
        if self._looking is None:
            wait = self._looked + self._owner.torrents_pace() - self._loop.time()
            if wait > 0:
                self._looking = self._loop.call_later(wait, self._look)
            else:
                self._look()

    def _look(self) -> None:
        self._looking = None
        if self._session is None:
            return
        self._looked = self._loop.time()
        for alert in self._session.pop_alerts():
            self._alert(alert)
        self._owner.torrents_looked()

    def _alert(self, alert: lt.alert) -> None:
        if isinstance(alert, lt.piece_finished_alert):
            self._owner.torrent_piece(_key(alert), alert.piece_index)
        elif isinstance(alert, lt.block_downloading_alert):
            self._owner.torrent_asked(_key(alert), alert.piece_index, alert.block_index, _remote(alert))
        elif isinstance(alert, lt.block_finished_alert):
            self._owner.torrent_block(_key(alert), alert.piece_index, alert.block_index, _remote(alert))
        elif isinstance(alert, lt.cache_flushed_alert):
            self._owner.torrent_flushed(_key(alert))
        elif isinstance(alert, lt.session_stats_alert):
            self.counters = alert.values
        else:
            self._rare(alert)

    def _rare(self, alert: lt.alert) -> None:
        if isinstance(alert, lt.add_torrent_alert):
            self._added(alert)
        elif isinstance(alert, lt.torrent_checked_alert):
            key = _key(alert)
            if key in self._handles:
                self._owner.torrent_ready(key)
            elif key not in self._unwanted:
                self._checked.add(key)
        elif isinstance(alert, lt.torrent_removed_alert):
            self._owner.torrent_removed(alert.info_hashes.v1.to_bytes())
        elif isinstance(alert, lt.torrent_need_cert_alert):
            certify(alert.handle, self._settings.tls)
        elif isinstance(alert, lt.peer_connect_alert):
            self._owner.torrent_connected(_key(alert), _remote(alert), "outgoing" in alert.message())
        elif isinstance(alert, lt.peer_disconnected_alert):
            self._owner.torrent_disconnected(_key(alert), _remote(alert))
        elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
            self._owner.torrent_failed(_key(alert), alert.message())
        elif isinstance(alert, lt.listen_failed_alert):
            if not self._listening.done():
                self._listening.set_exception(OperationError(alert.message()))
        elif isinstance(alert, lt.listen_succeeded_alert):
            if not self._listening.done():
                self._listening.set_result(None)
        elif isinstance(alert, lt.alerts_dropped_alert):
            _log.error("libtorrent dropped alerts: it says more than can be read", what=alert.message())

    def _added(self, alert: lt.add_torrent_alert) -> None:
        key = alert.params.info_hashes.v1.to_bytes()
        unwanted, checked = key in self._unwanted, key in self._checked
        self._unwanted.discard(key)
        self._checked.discard(key)
        if alert.error.value():
            self._owner.torrent_failed(key, alert.error.message())
            self._owner.torrent_removed(key)
        elif not unwanted:
            self._handles[key] = alert.handle
            if checked:
                self._owner.torrent_ready(key)
        elif self._session is not None:
            self._session.remove_torrent(alert.handle)


def _key(alert: lt.torrent_alert) -> bytes:
    return alert.handle.info_hashes().v1.to_bytes()


def _remote(alert: lt.peer_alert) -> Remote:
    host, port = alert.endpoint
    return Remote(host, port, alert.pid.to_bytes())
