"""What each part of an agent is told, from the configuration and the data directory."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.config import AgentConfig, password_text
from p2pdist.errors import StorageError
from p2pdist.mirror import Access, read_passwords
from p2pdist.pull import PullSettings
from p2pdist.trust import Enforcement, TrustSettings
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings


def make_upstreams(config: AgentConfig) -> Upstreams:
    """The clients of the registries in the configuration; an asynchronous context manager."""
    settings = [
        UpstreamSettings(
            name=registry.name,
            url=registry.endpoint,
            ca_file=registry.ca_file,
            connect_timeout=registry.connect_timeout_seconds,
            stall_timeout=registry.stall_timeout_seconds,
            max_connections=registry.max_connections,
            proxies=config.proxies_of(registry),
        )
        for registry in config.registries
    ]
    credentials = Credentials(config.upstream.credentials_file)
    return Upstreams(settings, credentials, allow_any=config.upstream.allow_any, proxies=config.proxies)


def mirror_access(config: AgentConfig) -> Access:
    """Who may ask the mirror; ConfigError if the password file can't be used."""
    mirror = config.mirror
    passwords: frozenset[bytes] = frozenset()
    if mirror.password_file is not None:
        passwords = read_passwords(password_text(mirror.password_file))
    names = {name.lower() for name in (*mirror.names, mirror.host)}
    return Access(frozenset(names), config.mirror_is_remote, passwords)


def pull_settings(config: AgentConfig) -> PullSettings:
    """What the configuration says about pulling."""
    upstream = config.upstream
    return PullSettings(
        rights_seconds=upstream.rights_seconds,
        rights_outage_seconds=upstream.rights_outage_seconds,
        rights_unreachable=upstream.rights_unreachable,
        rights_file=config.node.data_dir / "rights.json",
    )


def trust_settings(config: AgentConfig) -> TrustSettings:
    """What the configuration's [trust] says, as the gate takes it; ConfigError for a store's URL that can't be used."""
    trust = config.trust
    return TrustSettings(
        Enforcement(trust.enforcement),
        trust.policy_file,
        config.node.data_dir / "trust.sqlite3",
        lookaside=dict(store.split("=", 1) for store in trust.lookaside),
        ttl_seconds=trust.ttl_seconds,
    )


def node_key(path: Path) -> Ed25519PrivateKey:
    """This node's key, made at the first start; only its user can read it. StorageError if it can't be used."""
    try:
        if path.exists():
            return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        key = Ed25519PrivateKey.generate()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.private_bytes_raw())
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise StorageError(f"the node's key in {path} can't be used: {error}") from error
    return key
