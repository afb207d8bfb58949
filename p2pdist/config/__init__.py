"""An agent's configuration: TOML and environment variables in, frozen dataclasses out."""

from p2pdist.config.agent import AgentConfig
from p2pdist.config.load import load_agent
from p2pdist.config.logins import logins_in, password_text
from p2pdist.config.machine import AdminConfig, LogConfig, NodeConfig, StoreConfig
from p2pdist.config.membership import ClusterConfig, PeerConfig, SiteConfig, TrackerConfig
from p2pdist.config.registries import RegistryConfig, UpstreamConfig
from p2pdist.config.serving import MirrorConfig, TrustConfig
from p2pdist.config.values import human_size, parse_size

__all__ = [
    "AdminConfig",
    "AgentConfig",
    "ClusterConfig",
    "LogConfig",
    "MirrorConfig",
    "NodeConfig",
    "PeerConfig",
    "RegistryConfig",
    "SiteConfig",
    "StoreConfig",
    "TrackerConfig",
    "TrustConfig",
    "UpstreamConfig",
    "human_size",
    "load_agent",
    "logins_in",
    "parse_size",
    "password_text",
]
