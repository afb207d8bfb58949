"""TLS for a mirror that listens beyond loopback."""

from __future__ import annotations

import ssl
from pathlib import Path

from p2pdist.errors import ConfigError


def mirror_tls(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """The server's context, from PEM files; with `client_ca` only clients with a certificate of it get in.

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
    return context


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
