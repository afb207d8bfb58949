"""What the engine is told, and the libtorrent settings that were measured (design page on BitTorrent)."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import libtorrent as lt

if TYPE_CHECKING:
    from libtorrent import settings_pack


@dataclass(frozen=True, slots=True)
class Material:
    """What a member shows and trusts, PEM. `cluster`: the name of the authority's key, the same over renewals."""

    cluster: str
    authority: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class TorrentTls:
    """Mutual TLS: on control links by the two contexts, in BitTorrent by SSL torrents.

    `name`: the DNS name in every node's certificate; both contexts and libtorrent hold the other side to it.
    `identify`: the node id in a TLS object, None if it is no node's. `material`: None before this node is a member.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    name: str
    identify: Callable[[object], bytes | None]
    material: Callable[[], Material | None]


@dataclass(frozen=True, slots=True)
class Wan:
    """Between sites: uTP, which yields to other traffic, and limits in bytes per second (0: none)."""

    upload_limit: int = 0
    download_limit: int = 0
    target_delay_ms: int = 25  # well below the bottleneck's buffer, or uTP does not yield to TCP


@dataclass(frozen=True, slots=True)
class TorrentSettings:
    """Where to listen, where files may be put, and bounds. Times in seconds.

    Control links come in on `port` (0: any with two free ones behind it), BitTorrent on the next port, and torrents
    with real hashes on the one after it. `directory`: on the data's file system; its files are unlinked at once.
    """

    directory: Path
    host: str = "0.0.0.0"
    port: int = 0
    discover: bool = True  # local service discovery and peer exchange
    discovery: float = 2.0  # in which they have found somebody, if there is anybody
    tls: TorrentTls | None = None
    wan: Wan | None = None
    max_links: int = 128
    max_torrents: int = 64  # stored blobs that libtorrent has loaded at once (45 KiB and a file each)
    dials: int = 3  # BitTorrent connections that a node opens in a swarm: degree 6 (4: 1.16)
    flush: float = 0.05  # between two flush barriers of a torrent, at least
    silent: float = 2.0  # a neighbour that says nothing for so long is dead to us
    alive: float = 0.5  # a link on which nothing was said for so long says that it lives
    idle: float = 60.0  # a link that nobody used for so long is closed
    ban: float = 60.0  # a peer that sent wrong bytes is left alone for so long
    tick: float = 0.1


def session_settings(settings: TorrentSettings, port: int, peer_id: str, *, checks: bool) -> settings_pack:
    """The settings of one libtorrent session that listens on `port`. `peer_id`: 20 ASCII characters.

    Without `checks`, whatever arrives is taken: the engine proves it.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    wan = settings.wan
    pack: settings_pack = {
        "listen_interfaces": f"{host}:{port}{'s' if settings.tls is not None else ''}",
        "max_retry_port_bind": 0,
        "listen_system_port_fallback": False,
        "listen_queue_size": 512,
        "peer_fingerprint": peer_id,
        "alert_mask": alert_mask(watch=False),
        "alert_queue_size": 100_000,
        "enable_dht": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_lsd": settings.discover,
        "enable_incoming_utp": wan is not None,
        "enable_outgoing_utp": wan is not None,
        "enable_incoming_tcp": wan is None,
        "enable_outgoing_tcp": wan is None,
        "out_enc_policy": int(lt.enc_policy.disabled),
        "in_enc_policy": int(lt.enc_policy.disabled),
        "allow_multiple_connections_per_ip": True,
        "allow_idna": False,
        "ssrf_mitigation": False,
        "disable_hash_checks": not checks,
        "tick_interval": 100,  # ms; a dial waits for the tick
        "connection_speed": 1000,
        "torrent_connect_boost": 255,
        "smooth_connects": False,
        "min_reconnect_time": 1,
        "max_failcount": 1000,  # a dial that comes before the torrent is there is refused, and tried again
        "connections_limit": 2000,
        "unchoke_slots_limit": -1,  # everyone unchoked always (the rate-based choker: 1.76)
        "choking_algorithm": 0,
        "close_redundant_connections": False,
        "strict_end_game_mode": True,  # off: 3.5% duplicates
        # A complete torrent keeps its piece picker then. Without one, 2.1.1 dies of a given piece whose last blocks
        # came from peers and that completes the torrent (torrent::add_piece). The suggestions hardly matter with a
        # queue of one (0 dies, too: suggest_piece::add_piece).
        "suggest_mode": int(lt.suggest_mode_t.suggest_read_cache),
        "max_suggest_pieces": 1,
        "mixed_mode_algorithm": 0,
        "active_limit": 10_000,
        "active_downloads": -1,
        "active_seeds": -1,
        "max_queued_disk_bytes": 64 * 1024 * 1024,
        # One thread for the disk and for hashing: with a second one, 2.1.1 goes on hashing a piece that a removed
        # torrent had in its cache, and dies (disk_cache::kick_hasher; of one removal in the middle of giving in 25).
        # Four threads woke each other besides: 10% more CPU for the same.
        "aio_threads": 1,
        "hashing_threads": 0,
        "stop_tracker_timeout": 1,
    }
    if settings.host not in ("0.0.0.0", "::"):
        pack["outgoing_interfaces"] = settings.host
    if wan is not None:
        pack["utp_target_delay"] = wan.target_delay_ms
        # Bytes that the window grows per round trip. With libtorrent's 3000, a link of 20 Mbit/s and 80 ms that became
        # free was 82% used in the next seconds, so 99%. A TCP flow beside it keeps 91% of the link (bench/RESULTS.md).
        pack["utp_gain_factor"] = 20_000
    return pack


def alert_mask(*, watch: bool) -> int:
    """What libtorrent tells; `watch`: every block as well, which costs a third of the engine's own work."""
    category = lt.alert_category
    mask = category.status | category.error | category.storage | category.connect | category.piece_progress
    return mask | category.block_progress if watch else mask
