"""Which engines move chunks on this node, made from the configuration for the composition root; what they carry."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.config import AgentConfig
from p2pdist.config.labels import MAX_LABELS
from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError
from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.mesh.network import TcpNetwork
from p2pdist.pki import Role
from p2pdist.protocol import labels
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.gateway import GatewayEngine


def make_engine(config: AgentConfig, attestor: Attestor, key: Ed25519PrivateKey, enrolment: Enrolment | None) -> Engine:
    """The engine that the configuration names; `enrolment` None: insecure. ConfigError where it can't be had."""
    inner = _inner(config, attestor, key, enrolment)
    if not config.site.gateway:
        return inner
    if not site_of(config):
        raise ConfigError('site.gateway: node.labels must say which site this node is in, like "site=a"')
    outer = _bittorrent("site.gateway = true", config, attestor, key, enrolment, across=True)
    return GatewayEngine(inner, outer)


def site_of(config: AgentConfig) -> str:
    """The site that this node is in; empty: none."""
    return config.node.label_map.get(labels.SITE, "")


def zone_of(config: AgentConfig) -> str:
    """The zone into which chunks come under leases only; empty: none. A node that names its site has gateways."""
    names = config.node.label_map
    return names.get(labels.ZONE, "") if config.peer.engine == "mesh" and not names.get(labels.SITE) else ""


def said_labels(config: AgentConfig, engine: Engine) -> dict[str, str]:
    """What the tracker is told of this node: its labels, and what they mean for sites."""
    said: dict[str, str] = {}
    if isinstance(engine, GatewayEngine):
        said[labels.GATEWAY] = str(engine.outer.port)
    if zone_of(config):
        said[labels.CROSSING] = labels.LEASES
    if config.site.far_from_upstream:
        said[labels.UPSTREAM] = labels.FAR
    own = {key: value for key, value in config.node.label_map.items() if key not in (labels.GATEWAY, labels.UPSTREAM)}
    return dict(list({**said, labels.SITE: site_of(config), **own}.items())[:MAX_LABELS])


def engine_status(config: AgentConfig, engine: Engine, enrolment: Enrolment | None) -> list[dict[str, Any]]:
    """Each engine: whom it exchanges chunks with, how, and how much; bytes."""
    site = site_of(config)
    inside = f"in site {site}" if site else "everywhere"
    parts = [(engine, inside)]
    if isinstance(engine, GatewayEngine):
        parts = [(engine.inner, inside), (engine.outer, "with other sites")]
    return [
        {
            "engine": part.name,
            "carries": f"chunks {where}",
            "encryption": "mutual TLS" if enrolment is not None else "none, plain: cluster.insecure, no authority",
            "port": part.port,
            "links": len(part.links()),
            "bytes_in": part.stats.bytes_in,
            "bytes_out": part.stats.bytes_out,
        }
        for part, where in parts
    ]


def carriers(config: AgentConfig, engine: Engine, sources: Mapping[bytes, int]) -> list[dict[str, Any]]:
    """Which engine brought how many bytes of a blob, and from which site. `sources`: bytes by node."""
    brought: Counter[tuple[str, str]] = Counter()
    for node, count in sources.items():
        name, site = engine.name, site_of(config)
        if isinstance(engine, GatewayEngine):
            other = engine.site_of(node)
            name, site = (engine.outer.name, other) if other is not None else (engine.inner.name, site)
        brought[name, site] += count
    return [{"engine": name, "site": site, "bytes": count} for (name, site), count in sorted(brought.items())]


def _inner(config: AgentConfig, attestor: Attestor, key: Ed25519PrivateKey, enrolment: Enrolment | None) -> Engine:
    if config.peer.engine == "bittorrent":
        return _bittorrent('peer.engine = "bittorrent"', config, attestor, key, enrolment)
    peer = config.peer
    advertise = peer.advertise_host or ""
    settings = MeshSettings(host=peer.host, port=peer.port, advertise=advertise, zone=zone_of(config))
    if enrolment is None:
        return MeshEngine(attestor.node, TcpNetwork(), settings, random.Random())
    tls = enrolment.credentials
    network = TcpNetwork(tls.server, tls.client)
    return MeshEngine(attestor.node, network, settings, random.Random(), identify=tls.node)


def _bittorrent(
    option: str,
    config: AgentConfig,
    attestor: Attestor,
    key: Ed25519PrivateKey,
    enrolment: Enrolment | None,
    *,
    across: bool = False,
) -> Engine:
    try:
        from p2pdist.torrent.engine import TorrentEngine  # here: libtorrent has no wheels for every Python
        from p2pdist.torrent.settings import Material, TorrentSettings, TorrentTls, Wan
    except ImportError as error:
        raise ConfigError(f"{option} needs libtorrent, which this Python lacks: {error}") from error
    tls = None
    if enrolment is not None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        credentials = enrolment.credentials

        def material() -> Material | None:
            certificate = credentials.certificate
            if certificate is None or enrolment is None:
                return None
            shown = certificate.public_bytes(Encoding.PEM).decode()
            return Material(credentials.cluster, enrolment.authority.decode(), shown, private)

        # libtorrent trusts one authority only: a link with a node that it refuses would promise what never comes.
        tls = TorrentTls(credentials.server, credentials.client, Role.NODE.host, credentials.sibling, material)
    directory, host, site = config.node.data_dir, config.peer.host, config.site
    if across:
        wan = Wan(site.upload_bytes_per_second or 0, site.download_bytes_per_second or 0)
        settings = TorrentSettings(
            directory / "gateway", host=host, port=site.gateway_port, discover=False, tls=tls, wan=wan
        )
    else:
        settings = TorrentSettings(directory / "torrent", host=host, port=config.peer.port, tls=tls)
    return TorrentEngine(attestor, settings, random.Random())
