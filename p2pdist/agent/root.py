"""The agent's composition root: builds every part from the configuration, starts and stops them in pairs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from p2pdist.admin import AdminServer, MetricsServer
from p2pdist.agent.metrics import Metrics, Served
from p2pdist.agent.report import Report
from p2pdist.agent.session import Session
from p2pdist.agent.settings import make_upstreams, mirror_access, node_key, pull_settings, trust_settings
from p2pdist.config import AgentConfig
from p2pdist.engines import make_engine, said_labels
from p2pdist.enrol import Enrolment
from p2pdist.errors import OperationError
from p2pdist.mesh.engine import MeshEngine
from p2pdist.mirror import MirrorServer, MirrorSettings, mirror_tls
from p2pdist.oci import Reference
from p2pdist.orders import Orders
from p2pdist.protocol import messages as wire
from p2pdist.pull import Pull
from p2pdist.signature_source import SharedSource
from p2pdist.store import Recheck, Store
from p2pdist.swarm.attest import Attestor
from p2pdist.swarm.memory import recall, remember
from p2pdist.swarm.service import SwarmService, SwarmSettings
from p2pdist.tracker_client import TrackerClient
from p2pdist.trust import TrustGate

_log = structlog.get_logger("p2pdist.agent")


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What is known once the agent is ready."""

    mirror_host: str
    mirror_port: int
    peer_port: int
    node: str  # hex of the node's public key


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
            key = node_key(config.node.data_dir / "node.key")
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
                raise OperationError(
                    f"can't listen on {peer} for other nodes (peer.port): {error.strerror or error}"
                ) from error
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
            if config.store.recheck_bytes_per_second is not None:
                recheck = Recheck(self._store, config.store.recheck_bytes_per_second, self._swarms.lost)
                stack.callback(tasks.create_task(recheck.run()).cancel)
            if config.tracker.urls:
                client = self._session.client = self._make_client(key)
                if self._enrolment is not None:
                    stack.callback(tasks.create_task(self._enrolment.run()).cancel)
                stack.callback(tasks.create_task(self._keep_session(client)).cancel)
            else:
                self._swarms.tracker_state(False)
            self._mirror = await stack.enter_async_context(self._make_mirror())
            self._report = Report(
                config=config,
                node=self._attestor.node.hex(),
                started=self._started,
                enrolment=self._enrolment,
                gate=self._gate,
                store=self._store,
                engine=self._engine,
                swarms=self._swarms,
                session=self._session,
                pull=self._pull,
                orders=self._orders,
                mirror=self._mirror,
                served=self._served,
            )
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
        source = SharedSource(self._upstreams, session, self._pull, self._config.proxies)
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

    def status(self) -> dict[str, Any]:
        """For `p2pdist status`; bytes and seconds."""
        return self._report.status()

    def _make_metrics(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(Metrics(self.status))
        registry.register(self._served)
        return registry
