"""One upstream registry that may be asked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from p2pdist.errors import ConfigError
from p2pdist.oci import valid_registry
from p2pdist.proxies import DIRECT, Proxies

DOCKER_HUB_URL = "https://registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """A registry of the allow list.

    Args:
        name: as references write it: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
        url: where it is reached, http or https; a path in front of `/v2/` is taken along.
        connect_timeout: seconds until a connection (with TLS) must stand.
        stall_timeout: seconds without an answer, or without progress of a body, after which it counts as stalled.
        ca_file: PEM file of the certificate authorities that the registry's certificate must come from; None: the
            system's. Hosts it redirects to may use either.
        proxies: through which proxy what is reached.
        max_connections: for blobs, at the same time. Manifests and tokens have a few of their own.

    Raises:
        ConfigError: a name that is none, a URL that can't be used, a number out of range.
    """

    name: str
    url: str
    connect_timeout: float = 5.0
    stall_timeout: float = 20.0
    ca_file: Path | None = None
    max_connections: int = 16
    proxies: Proxies = DIRECT

    def __post_init__(self) -> None:
        if not valid_registry(self.name):
            raise ConfigError(f"{self.name!r} is not a registry's name, such as docker.io or 127.0.0.1:5000")
        try:
            url = URL(self.url)
        except ValueError as error:
            raise ConfigError(f"{self.name}: the url {self.url!r} is not one: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"{self.name}: the url must start with http:// or https:// and a host; got {self.url!r}")
        if url.user is not None or url.password is not None:
            raise ConfigError(f"{self.name}: credentials belong into the credentials file, not into the url")
        if url.query_string or url.fragment:
            raise ConfigError(f"{self.name}: the url must not have a query or a fragment")
        if not (self.connect_timeout > 0 and self.stall_timeout > 0 and self.max_connections > 0):
            raise ConfigError(f"{self.name}: timeouts and max_connections must be more than 0")

    @classmethod
    def for_name(cls, name: str) -> UpstreamSettings:
        """What follows from the name alone: https, but http for loopback, as Docker and containerd do."""
        if name == "docker.io":
            return cls(name, DOCKER_HUB_URL)
        return cls(name, f"{'http' if _is_loopback(URL(f'http://{name}').host or '') else 'https'}://{name}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, however it begins
        return False
