"""Which proxy a request to a registry goes through: one that was configured, or what the environment says. Pure.

The variables are read as dockerd and containerd read them (Go's golang.org/x/net/http/httpproxy), so that an agent and
the daemon beside it go the same way: HTTPS_PROXY for https, HTTP_PROXY for http, NO_PROXY for what needs none; each in
capitals, else in small letters. What is on this machine itself needs none, ever.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from p2pdist.errors import ConfigError

_WANTED = "wanted a proxy like http://host:port or http://user:password@host:port"
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `url`: without user and password; `authorization`: what to send it as Proxy-Authorization."""

    url: URL
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Proxy:
        """From a URL, or host:port alone. Raises ValueError, which says nothing of `text`: there may be a password."""
        try:
            url = URL(text if "://" in text else f"http://{text}")
            known = url.scheme in ("http", "https") and url.host and url.port
            if not known or url.path not in ("", "/") or url.query_string or url.fragment:
                raise ValueError
            user, password = url.user, url.password
            bare = URL.build(scheme=url.scheme, host=url.host or "", port=url.explicit_port)
        except ValueError:
            raise ValueError(_WANTED) from None
        if user is None and password is None:
            return cls(bare)
        login = base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()
        return cls(bare, f"Basic {login}")

    def options(self, url: URL, headers: Mapping[str, str]) -> dict[str, Any]:
        """What aiohttp's `request` has to be told to ask `url` with `headers` through it.

        The login goes to the proxy alone: beside CONNECT for https, and for http among the headers, whence the proxy
        takes it out (RFC 9110, section 11.7.2).
        """
        login = {} if self.authorization is None else {"Proxy-Authorization": self.authorization}
        if url.scheme == "https":
            return {"proxy": self.url, "proxy_headers": login, "headers": headers}
        return {"proxy": self.url, "headers": {**headers, **login}}

    def __str__(self) -> str:
        return str(self.url).rstrip("/")


@dataclass(frozen=True, slots=True)
class _Names:
    """A host name of NO_PROXY: it and all below it; only what is below it where `suffix` alone was given."""

    name: str
    suffix: str
    port: int | None

    def has(self, host: str, port: int | None, address: _Address | None) -> bool:
        return (host == self.name or host.endswith(self.suffix)) and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class _Addresses:
    """An address or a range of them. Only URLs with an address in them are meant: no name is looked up for this."""

    network: _Network
    port: int | None

    def has(self, host: str, port: int | None, address: _Address | None) -> bool:
        return address is not None and address in self.network and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class Proxies:
    """Through which proxy a URL is reached. `spared`: by the entries of NO_PROXY, in any case this machine itself."""

    http: Proxy | None = None
    https: Proxy | None = None
    spared: tuple[_Names | _Addresses, ...] | None = None  # None: nothing is

    @classmethod
    def only(cls, proxy: Proxy) -> Proxies:
        """Everything goes through `proxy`."""
        return cls(proxy, proxy)

    @classmethod
    def of_environment(cls, env: Mapping[str, str]) -> Proxies:
        """As the variables of `env` say. Raises ConfigError, naming the variable."""
        given = {}
        for scheme in ("http", "https"):
            name = next((name for name in _names(f"{scheme}_proxy") if env.get(name)), None)
            if name is None:
                continue
            try:
                given[scheme] = Proxy.parse(env[name])
            except ValueError as error:
                raise ConfigError(f"the environment variable {name}: {error}") from error
        text = next((env[name] for name in _names("no_proxy") if env.get(name)), "")
        entries = [entry.strip().lower() for entry in text.split(",")]
        if "*" in entries or not given:
            return cls()
        spared = tuple(found for found in map(_spared, filter(None, entries)) if found is not None)
        return cls(given.get("http"), given.get("https"), spared)

    def choose(self, url: URL) -> Proxy | None:
        """The proxy for `url`; None: it is asked directly."""
        proxy = self.https if url.scheme == "https" else self.http
        if proxy is None or self.spared is None:
            return proxy
        host = (url.host or "").rstrip(".").lower()
        try:
            address: _Address | None = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return None
        return None if any(entry.has(host, url.port, address) for entry in self.spared) else proxy


DIRECT = Proxies()


def _names(name: str) -> tuple[str, str]:
    return name.upper(), name


def _spared(entry: str) -> _Names | _Addresses | None:
    """One entry of NO_PROXY; None for one that means nothing, which is ignored as everybody does."""
    try:
        if "/" in entry:
            return _Addresses(ipaddress.ip_network(entry, strict=False), None)
        host, port = _host_and_port(entry)
    except ValueError:
        return None
    try:
        return _Addresses(ipaddress.ip_network(ipaddress.ip_address(host)), port)
    except ValueError:
        name = host.removeprefix("*").rstrip(".")
        return _Names(name, name if name.startswith(".") else f".{name}", port) if name.strip(".") else None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    host, separator, port = entry.rpartition(":")
    if entry.startswith("[") and entry.endswith("]"):
        return entry[1:-1], None
    if not separator or (":" in host and not entry.startswith("[")):
        return entry, None  # no port, or an IPv6 address
    return host.strip("[]"), int(port)
