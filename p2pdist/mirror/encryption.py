"""TLS for a mirror that listens beyond loopback."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from p2pdist.errors import ConfigError

_LOOK = 60.0  # seconds: how soon a renewed certificate is shown
_log = structlog.get_logger("p2pdist.mirror")


class MirrorTls:
    """The server's `context`, whose certificate is read again when its files have changed."""

    def __init__(self, certificate: Path, key: Path, context: ssl.SSLContext) -> None:
        self.context = context
        self._certificate = certificate
        self._key = key
        self._looked: float | None = None
        self._stamp = self._stamps()

    def look(self, now: float) -> None:
        """A client connects at this time, in seconds: once a minute the files are looked at. Never fails."""
        if self._looked is not None and now - self._looked < _LOOK:
            return
        self._looked = now
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        try:
            # Apart first: a pair that doesn't fit would leave the context with neither.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:  # half written, perhaps: looked at again in a minute
            _log.warning("the mirror's certificate was changed and can't be used; the old one stays", why=_why(error))
            return
        self._stamp = stamp
        _log.info("the mirror shows another certificate", file=str(self._certificate))

    def _stamps(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in (self._certificate, self._key))
        except OSError:
            return ()


def mirror_tls(certificate: Path, key: Path, client_ca: Path | None) -> MirrorTls:
    """From PEM files; with `client_ca` only clients with a certificate of it get in.

    Raises:
        ConfigError: a file can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # daemons of 2022 speak 1.3, some tools don't
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"mirror.tls_certificate, mirror.tls_key: {_why(error)} ({certificate}, {key})") from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"mirror.client_ca: {_why(error)} ({client_ca})") from error
    return MirrorTls(certificate, key, context)


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
