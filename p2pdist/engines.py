"""Which engine moves chunks on this node: built from the configuration, for the composition root."""

from __future__ import annotations

import random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.config import AgentConfig
from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError
from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.mesh.network import TcpNetwork
from p2pdist.pki import Role
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.engine import Engine


def make_engine(config: AgentConfig, attestor: Attestor, key: Ed25519PrivateKey, enrolment: Enrolment | None) -> Engine:
    """The engine that the configuration names; `enrolment` None: insecure. ConfigError where it can't be had."""
    if config.peer.engine == "bittorrent":
        return _bittorrent(config, attestor, key, enrolment)
    peer = config.peer
    settings = MeshSettings(host=peer.host, port=peer.port, advertise=peer.advertise_host or "")
    if enrolment is None:
        return MeshEngine(attestor.node, TcpNetwork(), settings, random.Random())
    tls = enrolment.credentials
    network = TcpNetwork(tls.server, tls.client)
    return MeshEngine(attestor.node, network, settings, random.Random(), identify=tls.node)


def _bittorrent(config: AgentConfig, attestor: Attestor, key: Ed25519PrivateKey, enrolment: Enrolment | None) -> Engine:
    try:
        from p2pdist.torrent.engine import TorrentEngine  # here: libtorrent has no wheels for every Python
        from p2pdist.torrent.settings import Material, TorrentSettings, TorrentTls
    except ImportError as error:
        raise ConfigError(f'peer.engine = "bittorrent" needs libtorrent, which this Python lacks: {error}') from error
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

        tls = TorrentTls(credentials.server, credentials.client, Role.NODE.host, credentials.node, material)
    directory = config.node.data_dir / "torrent"
    settings = TorrentSettings(directory, host=config.peer.host, port=config.peer.port, tls=tls)
    return TorrentEngine(attestor, settings, random.Random())
