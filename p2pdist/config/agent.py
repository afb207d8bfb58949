"""Everything an agent is told, and what of it must fit together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from p2pdist.config import values as v
from p2pdist.config.declare import Section
from p2pdist.config.machine import AdminConfig, LogConfig, NodeConfig, StoreConfig
from p2pdist.config.membership import ClusterConfig, PeerConfig, SiteConfig, TrackerConfig
from p2pdist.config.registries import RegistryConfig, UpstreamConfig
from p2pdist.config.serving import MirrorConfig, TrustConfig
from p2pdist.errors import ConfigError
from p2pdist.proxies import DIRECT, Proxies


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent is told. Made by `p2pdist.config.load_agent`, or directly in code.

    `proxies`: what the environment says of them; it holds for every registry that isn't told another way.
    """

    node: NodeConfig = field(default_factory=NodeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    mirror: MirrorConfig = field(default_factory=MirrorConfig)
    peer: PeerConfig = field(default_factory=PeerConfig)
    site: SiteConfig = field(default_factory=SiteConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    upstream: UpstreamConfig = field(default_factory=UpstreamConfig)
    registries: tuple[RegistryConfig, ...] = field(default_factory=lambda: (RegistryConfig(),))
    trust: TrustConfig = field(default_factory=TrustConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    log: LogConfig = field(default_factory=LogConfig)
    proxies: Proxies = DIRECT

    def __post_init__(self) -> None:
        names = [registry.name for registry in self.registries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"registries: {v.quoted(twice)} is there twice")
        plain = next((url for url in self.tracker.urls if url.startswith("http:")), None)
        if plain is not None and not self.cluster.insecure:
            raise ConfigError(
                f"tracker.urls: {v.quoted(plain)} is not encrypted: wanted https://, or cluster.insecure = true"
            )
        if self.cluster.token is not None and self.cluster.token_file is not None:
            raise ConfigError("cluster.token and cluster.token_file: give one of them")
        account, authority = self.cluster.kubernetes_token_file, self.cluster.authority_file
        if account is not None and (self.cluster.token is not None or self.cluster.token_file is not None):
            raise ConfigError("cluster.kubernetes_token_file is in place of a join token: give one of them")
        if (account is None) != (authority is None):
            raise ConfigError("cluster.kubernetes_token_file and cluster.authority_file: one needs the other")
        self._check_mirror()
        if self.trust.enforcement != "off" and self.trust.policy_file is None:
            raise ConfigError(f'trust.policy_file: enforcement = "{self.trust.enforcement}" needs a policy')
        for store in self.trust.lookaside:
            if not all(store.partition("=")):
                raise ConfigError(f"trust.lookaside: {v.quoted(store)} is not SCOPE=URL")
        if self.admin.socket is None:
            try:
                v.SOCKET.accept(self.admin_socket)
            except ValueError as error:
                raise ConfigError(f"admin.socket: {error}; set one in a shorter directory") from error

    def _check_mirror(self) -> None:
        mirror = self.mirror
        remote = not v.is_loopback(mirror.host)
        if remote and not mirror.allow_remote:
            raise ConfigError(
                f"mirror.host: {v.quoted(mirror.host)} is not loopback, and whoever reaches the mirror can pull what "
                "this node may pull: set mirror.allow_remote = true if that is meant"
            )
        if (mirror.tls_certificate is None) != (mirror.tls_key is None):
            raise ConfigError("mirror.tls_certificate and mirror.tls_key: one without the other")
        if mirror.client_ca is not None and mirror.tls_key is None:
            raise ConfigError("mirror.client_ca: a client can show a certificate with mirror.tls_certificate only")
        if mirror.password_file is not None and mirror.tls_key is None and remote:
            raise ConfigError("mirror.password_file: passwords would travel in clear: set mirror.tls_certificate")

    def proxies_of(self, registry: RegistryConfig) -> Proxies:
        """Through which proxies the registry, and what it names, is reached."""
        return self.proxies if registry.proxy is None else registry.proxy

    def proxy_of(self, registry: RegistryConfig) -> str:
        """The proxy that the registry itself is reached through, without its login; empty: none."""
        proxy = self.proxies_of(registry).choose(URL(registry.endpoint))
        return "" if proxy is None else str(proxy)

    @property
    def mirror_is_remote(self) -> bool:
        """Whether the mirror listens beyond loopback."""
        return not v.is_loopback(self.mirror.host)

    @property
    def admin_socket(self) -> Path:
        """Where the admin socket is."""
        return self.admin.socket if self.admin.socket is not None else self.node.data_dir / "admin.sock"


def section_types() -> dict[str, type[Section]]:
    """The tables of an agent's file by name, in the order of the reference; `registries` is an array of tables."""
    return {
        "node": NodeConfig,
        "store": StoreConfig,
        "mirror": MirrorConfig,
        "peer": PeerConfig,
        "site": SiteConfig,
        "tracker": TrackerConfig,
        "cluster": ClusterConfig,
        "upstream": UpstreamConfig,
        "registries": RegistryConfig,
        "trust": TrustConfig,
        "admin": AdminConfig,
        "log": LogConfig,
    }
