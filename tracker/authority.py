"""The cluster's authority where the tracker keeps it: opened at the start, read again when its files have changed."""

from __future__ import annotations

from pathlib import Path

import structlog

from p2pdist.errors import ConfigError, StorageError
from p2pdist.pki import Authority, cluster_of

log = structlog.get_logger()

LOOK = 5.0  # seconds: how soon a change of the files is seen
_NAMES = ("tls.crt", "tls.key", "trusted.crt")


def open_authority(data_directory: str, authority_directory: str, now: float) -> Authority:
    """The cluster's authority: from its own directory, or kept in the data directory, or for this process only.

    Raises:
        StorageError: it can't be read or made.
        ConfigError: there is none where one was promised, or it can't be used.
    """
    if authority_directory:
        found = Authority.load(Path(authority_directory))
        if found is None:
            raise ConfigError(f"authority_directory: {authority_directory} has no tls.crt and tls.key")
        return found
    if not data_directory:
        return Authority.create(now)
    return Authority.keep(_kept(data_directory), now)


def _kept(data_directory: str) -> Path:
    return Path(data_directory) / "authority"


class AuthorityFiles:
    """Who else is trusted may change while the tracker runs, and so may the certificate of its authority's own key."""

    def __init__(self, data_directory: str, authority_directory: str, authority: Authority) -> None:
        kept = _kept(data_directory) if data_directory else None
        self._directory = Path(authority_directory) if authority_directory else kept
        self._bundle = authority.bundle
        self._key = cluster_of(authority.certificate)
        self._due = 0.0
        self._stamp = self._stamps()

    def look(self, now: float) -> Authority | None:
        """The authority, if it is another than before; the loop's clock. Never fails: what can't be used is logged.

        One with another key signs once all trackers were restarted: it makes other tokens and other replicas' keys.
        """
        if self._directory is None or now < self._due:
            return None
        self._due = now + LOOK
        stamp = self._stamps()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            found = Authority.load(self._directory)
        except (ConfigError, StorageError) as error:  # half written, perhaps: looked at again when it has changed
            log.warning("the authority's files were changed and can't be used; all stays as it was", why=str(error))
            return None
        if found is None or cluster_of(found.certificate) != self._key:
            log.warning("the authority's key was changed: restart the trackers, all of them", at=str(self._directory))
            return None
        if found.bundle == self._bundle:
            return None
        self._bundle = found.bundle
        log.info("other authorities are trusted", clusters=[found.cluster, *map(cluster_of, found.others)])
        return found

    def _stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for name in _NAMES:
            try:
                status = (self._directory or Path()).joinpath(name).stat()
                stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError:
                stamps.append((0, 0, 0))
        return stamps
