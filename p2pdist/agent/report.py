"""What an agent says of itself: for `p2pdist status`, the doctor, and the metrics."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from p2pdist import __version__
from p2pdist.agent.metrics import Served
from p2pdist.agent.session import Session
from p2pdist.config import AgentConfig
from p2pdist.engines import carriers, engine_status
from p2pdist.enrol import Enrolment
from p2pdist.mirror import MirrorServer
from p2pdist.orders import Orders
from p2pdist.pull import Pull
from p2pdist.store import Store
from p2pdist.swarm.engine import Engine
from p2pdist.swarm.service import SwarmService
from p2pdist.trust import TrustGate


@dataclass(frozen=True, slots=True)
class Report:
    """The parts of a running agent that something is told of. `node`: hex of its public key; `started`: Unix time.

    `enrolment` None: insecure. `gate` None: no policy.
    """

    config: AgentConfig
    node: str
    started: float
    enrolment: Enrolment | None
    gate: TrustGate | None
    store: Store
    engine: Engine
    swarms: SwarmService
    session: Session
    pull: Pull
    orders: Orders
    mirror: MirrorServer
    served: Served

    def status(self) -> dict[str, Any]:
        """For `p2pdist status`; bytes and seconds."""
        stats = self.engine.stats
        usage = self.store.usage()
        return {
            "version": __version__,
            "node": {"name": self.config.node.name, "id": self.node},
            "uptime_seconds": time.time() - self.started,
            "insecure": self.enrolment is None,  # neither encrypted nor authenticated between nodes
            "membership": self.enrolment.status() if self.enrolment is not None else {"member": True},
            "mirror": {
                "host": self.config.mirror.host,
                "port": self.mirror.port,
                "remote": self.config.mirror_is_remote,
                "tls": self.config.mirror.tls_certificate is not None,
                "connections": self.mirror.connections,
                "limits": asdict(self.mirror.counts),
                "answers": self.served.by_kind(),
                "bytes": self.served.bytes,
            },
            "peer": {
                "port": self.engine.port,
                "engine": self.engine.name,
                "links": len(self.engine.links()),
                "requests_out": stats.requests_out,
                "limits": {
                    "refused_connections": stats.refused_connections,
                    "slow_connections": stats.slow_connections,
                    "bad_requests": stats.bad_requests,
                    "ended_certificates": stats.ended_certificates,
                },
            },
            "engines": engine_status(self.config, self.engine, self.enrolment),
            "tracker": {
                "urls": list(self.config.tracker.urls),
                "connected": self.session.connected,
                "at": self.session.at,
                "nodes": self.swarms.nodes,
            },
            "registries": [
                {"name": one.name, "url": one.endpoint, "proxy": self.config.proxy_of(one)}
                for one in self.config.registries
            ],
            "trust": self._trust(),
            "rights": asdict(self.pull.rights.counts),
            "store": {
                "blobs": usage.blobs,
                "bytes": usage.stored,
                "kept_bytes": usage.kept,
                "full": usage.refused,
                "rechecked_bytes": usage.rechecked,
                "damaged": usage.damaged,
            },
            "orders": self.orders.status(),
            "transfer": {
                "bytes_from_upstream": self.swarms.bytes_from_upstream,
                "bytes_from_peers": stats.bytes_in,
                "bytes_to_peers": stats.bytes_out,
                "bytes_redundant": stats.bytes_redundant,
                "chunks_from_peers": stats.chunks_in,
                "busy_answers": stats.busy,
                "stalls": stats.stalls,
                "refused_chunks": stats.refused,
                "seeds": self.swarms.seeds,
            },
            "transfers": [
                {
                    "digest": str(transfer.blob.digest),
                    "size": transfer.blob.size,
                    "chunks": transfer.exchange.count if transfer.exchange is not None else 0,
                    "proved": transfer.exchange.have.bit_count() if transfer.exchange is not None else 0,
                    "from_upstream": transfer.from_upstream,
                    "from_peers": carriers(self.config, self.engine, transfer.exchange.sources)
                    if transfer.exchange is not None
                    else [],
                    "clients": transfer.clients,
                }
                for transfer in self.swarms.transfers
            ],
        }

    def _trust(self) -> dict[str, Any]:
        if self.gate is None:
            return {"enforcement": "off"}
        status = self.gate.status()
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
