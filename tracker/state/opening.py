"""From a configured URL to the state that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from p2pdist.errors import ConfigError
from tracker.state.local import LocalState
from tracker.state.protocol import State
from tracker.state.redis import PATIENCE, Client, RedisState
from tracker.state.settings import StateSettings

_PORT, _SENTINEL_PORT = 6379, 26379
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class _Server:
    """A URL, taken apart. `kind`: "", "sentinel" or "cluster"."""

    kind: str
    tls: bool
    hosts: list[tuple[str, int]]
    service: str
    database: int
    username: str | None
    password: str | None

    @property
    def where(self) -> str:
        """For messages: no password in it."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)


def open_configured(settings: StateSettings, data_directory: str) -> State:
    """The state that a configuration names; see `open_state`."""
    return open_state(
        settings.url,
        data_directory,
        prefix=settings.prefix,
        password_file=settings.password_file,
        sentinel_password_file=settings.sentinel_password_file,
        ca_file=settings.ca_file,
    )


def open_state(
    url: str,
    data_directory: str = "",
    *,
    prefix: str = "p2pdist",
    password_file: str = "",
    sentinel_password_file: str = "",
    ca_file: str = "",
) -> State:
    """The state at `url`, or without one in `data_directory`, or in memory. Redis is not asked yet.

    `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, with TLS `rediss://`; `redis+sentinel://HOST[:PORT],.../SERVICE`;
    `redis+cluster://HOST[:PORT],...`.

    Raises:
        ConfigError: the URL, the prefix or a file it needs can't be used.
        StorageError: the data directory can't be used.
    """
    if not url:
        return LocalState.open(Path(data_directory) if data_directory else None)
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", prefix):
        raise ConfigError(f"state.prefix: wanted letters, digits and . _ : -, got {prefix!r}")
    server = _parse(url)
    options: dict[str, Any] = {
        "username": server.username,
        "password": _secret(password_file) or server.password,
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
    }
    if server.tls:
        if ca_file and not Path(ca_file).is_file():
            raise ConfigError(f"state.ca_file: there is no {ca_file}")
        options |= {
            "ssl": True,
            "ssl_ca_certs": ca_file or None,
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
        }
    return RedisState(_clients(server, options, _secret(sentinel_password_file)), prefix, server.where)


def _clients(server: _Server, options: dict[str, Any], sentinel_password: str | None) -> list[Client]:
    """The client to use, then those it needs. A call that failed may have been done: nothing is sent twice."""
    once = Retry(NoBackoff(), 0)
    if server.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in server.hosts]
        return [RedisCluster(startup_nodes=nodes, retry=once, **options)]
    options |= {"db": server.database, "retry": once, "max_connections": _CONNECTIONS}
    if server.kind == "sentinel":
        kept = {name: value for name, value in options.items() if name.startswith(("ssl", "socket"))}
        sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis-py
            server.hosts, sentinel_kwargs=kept | {"password": sentinel_password, "retry": once}, **options
        )
        return [sentinels.master_for(server.service), *sentinels.sentinels]
    host, port = server.hosts[0]
    return [Redis(host=host, port=port, **options)]


def _parse(url: str) -> _Server:
    """What is said about a wrong one must not contain it: there may be a password in it."""
    parts = urlsplit(url)
    match = re.fullmatch(r"(rediss?)(?:\+(sentinel|cluster))?", parts.scheme)
    if match is None:
        raise ConfigError(
            "state.url: wanted redis://, rediss://, redis+sentinel:// or redis+cluster://, "
            f"got one that begins with {parts.scheme!r}"
        )
    kind = match[2] or ""
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path else ""
    database = path.pop(0) if path else "0"
    hosts = _hosts(parts, _SENTINEL_PORT if kind == "sentinel" else _PORT)
    if kind == "sentinel" and not service:
        raise ConfigError(
            "state.url: the name of Sentinel's service is missing: redis+sentinel://HOST:PORT,.../SERVICE"
        )
    if path or parts.query or parts.fragment or not database.isdecimal() or (not kind and len(hosts) > 1):
        raise ConfigError("state.url: wanted redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")
    username, password = (unquote(text) if text else None for text in (parts.username, parts.password))
    return _Server(kind, match[1] == "rediss", hosts, service, int(database), username, password)


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    hosts = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/]+))(?::([0-9]{1,5}))?", text)
        if match is None or int(match[3] or port) > 65535:
            raise ConfigError(f"state.url: wanted HOST or HOST:PORT, got {text!r}")
        hosts.append((match[1] or match[2], int(match[3] or port)))
    return hosts


def _secret(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"state: the password file {path}: {error}") from error
