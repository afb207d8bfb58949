"""Takes and gives torrents of exported images, as an ordinary BitTorrent client does. Blocking, for the command line.

No DHT and no port mapping: peers come from the torrent's trackers, local discovery, peer exchange, and who is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import libtorrent as lt

from p2pdist.errors import InputError, OperationError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from libtorrent import settings_pack

_MAX_TORRENT = 16 * 1024 * 1024  # bytes of a .torrent
_LOOK = 0.25  # seconds between two looks at the progress


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes; `total` is 0 before the torrent's metadata is known. `peers`: connected."""

    done: int
    total: int
    peers: int


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """`listen`: address and port, 0: any. `peers`: (address, port) to ask first. `max_bytes`: of a torrent taken.

    `discover`: find peers on this network segment (local service discovery).
    """

    listen: str = "0.0.0.0:0,[::]:0"
    peers: tuple[tuple[str, int], ...] = ()
    max_bytes: int = 200 * 1024**3
    discover: bool = True


def is_magnet(text: str) -> bool:
    """Whether it is a magnet link rather than a file."""
    return text.startswith("magnet:")


def download(what: str, directory: Path, settings: ClientSettings, report: Callable[[Progress], bool]) -> None:
    """Fetch all of a .torrent file or magnet link into `directory`.

    Args:
        report: told now and then; False gives up.

    Raises:
        InputError: no torrent, or one of more than `max_bytes`.
        StorageError: the disk.
        OperationError: given up.
    """
    with _running(what, directory, settings, 0) as (session, handle):
        sized = False
        while True:
            status = handle.status()
            _raise_errors(session)
            if status.has_metadata and not sized:
                sized = True
                if status.total_wanted > settings.max_bytes:
                    raise InputError(f"the torrent has {status.total_wanted} bytes; over {settings.max_bytes}")
            if sized and status.is_seeding:
                return
            total = status.total_wanted if sized else 0
            if not report(Progress(status.total_wanted_done if sized else 0, total, status.num_peers)):
                raise OperationError(f"given up with {status.total_wanted_done} of {total} bytes")
            session.wait_for_alert(int(_LOOK * 1000))


def seed(file: Path, directory: Path, settings: ClientSettings, report: Callable[[int, Progress], bool]) -> None:
    """Give the content of a .torrent that is in `directory` to whoever asks, until `report` says False.

    Every piece is checked first. `report` is told the port, too.

    Raises:
        InputError, StorageError: as `download`; also when the files are not those of the torrent.
    """
    with _running(str(file), directory, settings, lt.torrent_flags.upload_mode) as (session, handle):
        checked = False
        while True:
            status = handle.status()
            _raise_errors(session)
            state = status.state
            if not checked and state not in (status.states.checking_files, status.states.checking_resume_data):
                checked = True
                if not status.is_seeding:
                    raise StorageError(f"the files in {directory} are not those of {file}")
            progress = Progress(status.total_wanted_done, status.total_wanted, status.num_peers)
            if checked and not report(session.listen_port(), progress):
                return
            session.wait_for_alert(int(_LOOK * 1000))


@contextmanager
def _running(
    what: str, directory: Path, settings: ClientSettings, flags: int
) -> Iterator[tuple[lt.session, lt.torrent_handle]]:
    parameters = _read(what)
    parameters.save_path = str(directory)
    parameters.peers = [*parameters.peers, *settings.peers]
    managed = lt.torrent_flags.auto_managed | lt.torrent_flags.paused
    parameters.flags = lt.torrent_flags.default_flags & ~managed | flags
    session_parameters = lt.session_params()
    session_parameters.settings = _settings(settings)
    session = lt.session(session_parameters)
    yield session, session.add_torrent(parameters)


def _settings(settings: ClientSettings) -> settings_pack:
    category = lt.alert_category
    return {
        "listen_interfaces": settings.listen,
        "enable_dht": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_lsd": settings.discover,
        "allow_multiple_connections_per_ip": True,
        "alert_mask": category.error | category.storage | category.status,
        "stop_tracker_timeout": 1,
        # A named peer that refused once is tried again soon (a minute otherwise), and more than three times.
        "min_reconnect_time": 1,
        "max_failcount": 1000,
    }


def _read(what: str) -> lt.add_torrent_params:
    try:
        if is_magnet(what):
            return lt.parse_magnet_uri(what)
        path = Path(what)
        if path.stat().st_size > _MAX_TORRENT:
            raise InputError(f"{path} has over {_MAX_TORRENT} bytes: no .torrent")
        return lt.load_torrent_buffer(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{what} can't be read: {error.strerror}") from error
    except RuntimeError as error:
        raise InputError(f"{what[:200]} is no torrent: {error}") from error


def _raise_errors(session: lt.session) -> None:
    for alert in _errors(session.pop_alerts()):
        raise StorageError(alert.message())


def _errors(alerts: Iterable[lt.alert]) -> list[lt.alert]:
    return [alert for alert in alerts if isinstance(alert, lt.file_error_alert | lt.torrent_error_alert)]
