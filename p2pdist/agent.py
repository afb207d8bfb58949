"""The agent's composition root: builds every part from the configuration, starts and stops them in pairs."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from p2pdist import __version__
from p2pdist.admin import AdminServer, MetricsServer
from p2pdist.config import AgentConfig
from p2pdist.engines import carriers, engine_status, make_engine, said_labels
from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError, OperationError, StorageError, TrackerError
from p2pdist.mesh.engine import MeshEngine
from p2pdist.mirror import Access, MirrorServer, MirrorSettings, mirror_tls, read_passwords
from p2pdist.oci import Reference
from p2pdist.orders import Orders
from p2pdist.protocol import messages as wire
from p2pdist.pull import Pull, PullSettings
from p2pdist.signature_source import SharedSource
from p2pdist.store import Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.memory import recall, remember
from p2pdist.swarm.service import SwarmService, SwarmSettings
from p2pdist.tracker_client import TrackerClient
from p2pdist.trust import Enforcement, TrustGate, TrustSettings
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings

_log = structlog.get_logger("p2pdist.agent")


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What is known once the agent is ready."""

    mirror_host: str
    mirror_port: int
    peer_port: int
    node: str  # hex of the node's public key


class Session:
    """The session with the tracker as the other rooms see it, also where none is configured."""

    def __init__(self) -> None:
        self.client: TrackerClient | None = None

    @property
    def connected(self) -> bool:
        """A session is open."""
        return self.client is not None and self.client.connected

    @property
    def at(self) -> str:
        """The URL, by address, of the tracker that it is with; empty: with none."""
        place = self.client.place if self.client is not None else None
        return place.base if place is not None else ""

    def send(self, message: wire.FromAgent) -> bool:
        """Queue a message; False while no session is open."""
        return self.client is not None and self.client.send(message)

    async def ask(self, key: str, timeout: float) -> wire.Content | wire.Fetch | wire.Absent:
        """Small content by key."""
        if self.client is None:
            raise TrackerError("no tracker is configured")
        return await self.client.ask(key, timeout)


class Agent:
    """One node. `run` returns when `stop` is set and everything is put away."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._started = time.time()
        self._session = Session()
        self._served = Served()
        self._gate: TrustGate | None = None
        self._enrolment: Enrolment | None = None  # None: insecure

    async def run(self, ready: Callable[[AgentStatus], None] | None = None, stop: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set (for ever without one)."""
        stop = stop or asyncio.Event()
        config = self._config
        async with AsyncExitStack() as stack:
            self._store = await Store.open(config.node.data_dir, max_bytes=config.node.max_store_bytes)
            stack.push_async_callback(self._store.close)
            key = _node_key(config.node.data_dir / "node.key")
            self._attestor = Attestor(key)
            self._enrolment = Enrolment.open(config, key)
            self._upstreams = await stack.enter_async_context(make_upstreams(config))
            self._engine = make_engine(config, self._attestor, key, self._enrolment)
            self._swarms = SwarmService(
                self._store,
                self._upstreams.registry,
                self._engine,
                self._attestor,
                self._session,
                SwarmSettings(),
                carry=self._engine.carry if isinstance(self._engine, MeshEngine) else None,
            )
            try:
                await self._engine.start(self._swarms)
            except OSError as error:
                peer = f"{config.peer.host}:{config.peer.port}"
                raise OperationError(f"can't listen on {peer} for other nodes (peer.port): {error}") from error
            stack.push_async_callback(self._engine.stop)
            await self._swarms.start()
            stack.push_async_callback(self._swarms.stop)
            memory = config.node.data_dir / "cluster.json"
            self._swarms.known = recall(memory, self._attestor)
            stack.callback(lambda: remember(memory, self._attestor, self._engine.links() or self._swarms.known))
            self._pull = Pull(self._store, self._upstreams, self._swarms, self._session, pull_settings(config))
            await self._pull.start()
            stack.push_async_callback(self._pull.stop)
            await self._open_gate(stack)
            orders = Orders(config, self._store, self._swarms, self._pull, self._session)
            self._orders = await stack.enter_async_context(orders)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            if self._gate is not None:
                stack.callback(tasks.create_task(self._gate.run()).cancel)
            if config.tracker.urls:
                client = self._session.client = self._make_client(key)
                if self._enrolment is not None:
                    stack.callback(tasks.create_task(self._enrolment.run()).cancel)
                stack.callback(tasks.create_task(self._keep_session(client)).cancel)
            else:
                self._swarms.tracker_state(False)
            self._mirror = await stack.enter_async_context(self._make_mirror())
            metrics = self._make_metrics()
            keeper = self._orders.retention
            admin = AdminServer(config.admin_socket, self.status, metrics, self._import, keeper)
            await stack.enter_async_context(admin)
            if config.admin.metrics_port is not None:
                server = MetricsServer(config.admin.metrics_host, config.admin.metrics_port, metrics)
                await stack.enter_async_context(server)
            if ready is not None:
                ready(AgentStatus(config.mirror.host, self._mirror.port, self._engine.port, self._attestor.node.hex()))
            _log.info("ready", mirror=self._mirror.port, peers=self._engine.port, data=str(config.node.data_dir))
            await stop.wait()

    async def _open_gate(self, stack: AsyncExitStack) -> None:
        """Put the policy in force; ConfigError if it can't be."""
        if self._config.trust.enforcement == "off":
            return
        settings = trust_settings(self._config)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        source = SharedSource(self._upstreams, session, self._pull)
        self._gate = self._pull.gate = await TrustGate.open(settings, source)
        stack.push_async_callback(self._gate.close)

    async def _keep_session(self, client: TrackerClient) -> None:
        """The session with the tracker, as soon as this node is a member."""
        if self._enrolment is not None:
            await self._enrolment.member.wait()
        await client.run()

    def _make_client(self, key: Ed25519PrivateKey) -> TrackerClient:
        return TrackerClient(
            self._config.tracker.urls,
            key,
            self._config.node.name,
            self._config.peer.advertise_host or "",
            self._engine.port,
            said_labels(self._config, self._engine),
            on_message=self._tracker_said,
            on_state=self._swarms.tracker_state,
            busy=lambda: bool(self._swarms.transfers),
            tls=self._enrolment.credentials.client if self._enrolment is not None else None,
        )

    def _tracker_said(self, message: wire.FromTracker) -> None:
        self._swarms.tracker_message(message)
        self._orders.heard(message)

    def _make_mirror(self) -> MirrorServer:
        mirror = self._config.mirror
        settings = MirrorSettings(
            serve="proved" if mirror.serve == "proved" else "auto",
            decide_deadline=mirror.decide_deadline_seconds,
            header_deadline=mirror.header_deadline_seconds,
            stop=self._config.node.shutdown_seconds,
            max_connections=mirror.max_connections,
            access=mirror_access(self._config),
        )
        tls = None
        if mirror.tls_certificate is not None and mirror.tls_key is not None:
            tls = mirror_tls(mirror.tls_certificate, mirror.tls_key, mirror.client_ca)
        elif self._config.mirror_is_remote:
            _log.warning("the mirror listens beyond loopback without encryption (mirror.tls_certificate)")
        return MirrorServer(
            self._orders.source, settings, host=mirror.host, port=mirror.port, on_served=self._served.add, tls=tls
        )

    async def _import(self, directory: Path, name: str | None) -> list[tuple[str, str]]:
        """Take the images of an OCI layout into the store; their names and digests."""
        from p2pdist.torrent.import_ import import_layout  # here: most agents never import

        imported = await import_layout(self._store, directory, reference=Reference.parse(name) if name else None)
        for blob in imported.stored:
            self._swarms.stored(blob)
        for image, _ in imported.images:
            self._pull.rights.grant(Reference.parse(image).repository)
        self._orders.denied.look_again()
        return [(image, str(digest)) for image, digest in imported.images]

    # --- what it is doing ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """For `p2pdist status`; bytes and seconds."""
        stats = self._engine.stats
        usage = self._store.usage()
        return {
            "version": __version__,
            "node": {"name": self._config.node.name, "id": self._attestor.node.hex()},
            "uptime_seconds": time.time() - self._started,
            "insecure": self._enrolment is None,  # neither encrypted nor authenticated between nodes
            "membership": self._enrolment.status() if self._enrolment is not None else {"member": True},
            "mirror": {
                "host": self._config.mirror.host,
                "port": self._mirror.port,
                "remote": self._config.mirror_is_remote,
                "tls": self._config.mirror.tls_certificate is not None,
                "connections": self._mirror.connections,
                "limits": asdict(self._mirror.counts),
                "answers": self._served.by_kind(),
                "bytes": self._served.bytes,
            },
            "peer": {
                "port": self._engine.port,
                "engine": self._engine.name,
                "links": len(self._engine.links()),
                "requests_out": stats.requests_out,
                "limits": {
                    "refused_connections": stats.refused_connections,
                    "slow_connections": stats.slow_connections,
                    "bad_requests": stats.bad_requests,
                    "ended_certificates": stats.ended_certificates,
                },
            },
            "engines": engine_status(self._config, self._engine, self._enrolment),
            "tracker": {
                "urls": list(self._config.tracker.urls),
                "connected": self._session.connected,
                "at": self._session.at,
                "nodes": self._swarms.nodes,
            },
            "trust": self._trust_status(),
            "rights": asdict(self._pull.rights.counts),
            "store": {"blobs": usage.blobs, "bytes": usage.stored, "kept_bytes": usage.kept, "full": usage.refused},
            "orders": self._orders.status(),
            "transfer": {
                "bytes_from_upstream": self._swarms.bytes_from_upstream,
                "bytes_from_peers": stats.bytes_in,
                "bytes_to_peers": stats.bytes_out,
                "bytes_redundant": stats.bytes_redundant,
                "chunks_from_peers": stats.chunks_in,
                "busy_answers": stats.busy,
                "stalls": stats.stalls,
                "refused_chunks": stats.refused,
                "seeds": self._swarms.seeds,
            },
            "transfers": [
                {
                    "digest": str(transfer.blob.digest),
                    "size": transfer.blob.size,
                    "chunks": transfer.exchange.count if transfer.exchange is not None else 0,
                    "proved": transfer.exchange.have.bit_count() if transfer.exchange is not None else 0,
                    "from_upstream": transfer.from_upstream,
                    "from_peers": carriers(self._config, self._engine, transfer.exchange.sources)
                    if transfer.exchange is not None
                    else [],
                    "clients": transfer.clients,
                }
                for transfer in self._swarms.transfers
            ],
        }

    def _trust_status(self) -> dict[str, Any]:
        if self._gate is None:
            return {"enforcement": "off"}
        status = self._gate.status()
        return {
            "enforcement": str(status.enforcement),
            "counts": asdict(status.counts),
            "policy": {"file": status.policy_file, "generation": status.generation, "problem": status.problem},
            "refusals": [
                {
                    "at": one.at,
                    "enforced": one.enforced,
                    "repository": one.verdict.repository,
                    "target": one.verdict.target,
                    "digest": one.verdict.digest,
                    "reason": one.verdict.reason,
                }
                for one in status.refusals
            ],
        }

    def _make_metrics(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(_Metrics(self.status))
        registry.register(self._served)
        return registry


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
        )
        for registry in config.registries
    ]
    credentials = Credentials(config.upstream.credentials_file)
    return Upstreams(settings, credentials, allow_any=config.upstream.allow_any)


def mirror_access(config: AgentConfig) -> Access:
    """Who may ask the mirror; ConfigError if the password file can't be used."""
    mirror = config.mirror
    passwords: frozenset[bytes] = frozenset()
    if mirror.password_file is not None:
        try:
            passwords = read_passwords(mirror.password_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"mirror.password_file: {mirror.password_file} can't be read: {error}") from error
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


class Served:
    """What the mirror answered, by kind and status: counted for metrics and status."""

    def __init__(self) -> None:
        self.bytes = 0
        self._answers: Counter[tuple[str, int]] = Counter()

    def add(self, kind: str, status: int, size: int) -> None:
        """One answer with a body of `size` bytes."""
        self._answers[kind, status] += 1
        self.bytes += size

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Counts, for status."""
        kinds: dict[str, dict[str, int]] = {}
        for (kind, status), count in sorted(self._answers.items()):
            kinds.setdefault(kind, {})[str(status)] = count
        return kinds

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client."""
        answers = CounterMetricFamily("p2pdist_mirror_answers", "Answers to daemons", labels=("kind", "status"))
        for (kind, status), count in self._answers.items():
            answers.add_metric((kind, str(status)), count)
        yield answers
        yield CounterMetricFamily("p2pdist_mirror_bytes", "Bytes of bodies sent to daemons", value=self.bytes)


class _Metrics:
    """The status as Prometheus metrics; no digest, repository or peer in any label."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        for name, value in status["transfer"].items():
            if name == "seeds":
                yield GaugeMetricFamily("p2pdist_seeds", "Stored blobs that are open for peers", value=value)
            else:
                yield CounterMetricFamily(f"p2pdist_{name}", name.replace("_", " "), value=value)
        for name, value in status["trust"].get("counts", {}).items():
            yield CounterMetricFamily(f"p2pdist_trust_{name}", name.replace("_", " "), value=value)
        for port in ("mirror", "peer"):
            for name, value in status[port]["limits"].items():
                yield CounterMetricFamily(f"p2pdist_{port}_{name}", name.replace("_", " "), value=value)
        connections = status["mirror"]["connections"]
        yield GaugeMetricFamily("p2pdist_mirror_connections", "Connections of daemons", value=connections)
        for name, value in status["rights"].items():
            yield CounterMetricFamily(f"p2pdist_rights_{name}", f"Who may read: {name}", value=value)
        requests = status["peer"]["requests_out"]
        yield GaugeMetricFamily("p2pdist_peer_requests_out", "Chunks in flight to this node", value=requests)
        yield GaugeMetricFamily("p2pdist_links", "Peers with an open link", value=status["peer"]["links"])
        connected = float(status["tracker"]["connected"])
        yield GaugeMetricFamily("p2pdist_tracker_connected", "1 with a tracker session", value=connected)
        if not status["insecure"]:
            left = status["membership"]["certificate_seconds"]
            yield GaugeMetricFamily("p2pdist_certificate_seconds", "For how long this node is a member", value=left)
        yield GaugeMetricFamily("p2pdist_store_bytes", "Bytes of stored blobs", value=status["store"]["bytes"])
        kept = status["store"]["kept_bytes"]
        yield GaugeMetricFamily("p2pdist_store_kept_bytes", "Bytes of stored blobs that are not evicted", value=kept)
        full = status["store"]["full"]
        yield CounterMetricFamily("p2pdist_store_full", "Times that the store had no room for something", value=full)
        for name, value in status["orders"].items():
            kind = GaugeMetricFamily if name in {"denied_entries", "preheats_running"} else CounterMetricFamily
            yield kind(f"p2pdist_{name}", name.replace("_", " "), value=value)
        yield GaugeMetricFamily("p2pdist_transfers", "Blobs on their way", value=len(status["transfers"]))


def _node_key(path: Path) -> Ed25519PrivateKey:
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
