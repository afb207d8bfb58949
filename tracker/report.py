"""What a tracker says about itself: Prometheus metrics and a status document. Reads, never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tracker.cluster import Cluster
from tracker.sessions import Traffic

MOST = 1000  # nodes and swarms listed in a status document


@dataclass(frozen=True, slots=True)
class Membership:
    """Who became or stayed a member here, and for how many seconds the authority is valid."""

    enrolled: int
    renewed: int
    refused: int
    limited: int
    authority_seconds: float


@dataclass(frozen=True, slots=True)
class Standing:
    """One replica among the others. `leader`, `replicas`: addresses; `nodes`: of the whole cluster.

    `lag`: seconds that it was late at worst, lately; `membership`: None where there are no certificates.
    """

    role: str
    leader: str
    replicas: list[str]
    orphaned: bool
    state_trouble: str
    outages: int
    unwritten: int
    sessions: int
    nodes: int
    lag: float = 0.0
    membership: Membership | None = None


class _Snapshot(Collector):
    """The cluster at the time of a scrape. Labels carry no digests: they would be without bound."""

    def __init__(self, cluster: Cluster | None, traffic: Traffic, standing: Standing) -> None:
        self._cluster = cluster
        self._traffic = traffic
        self._standing = standing

    def collect(self) -> Iterable[Metric]:
        yield from _gauges(_standing(self._standing))
        yield CounterMetricFamily(
            "p2pdist_tracker_state_outages", "Times the state couldn't be reached", value=self._standing.outages
        )
        yield from _counters(_traffic(self._traffic))
        if self._standing.membership is not None:
            yield from _counters(_membership(self._standing.membership))
        if self._cluster is not None:
            yield from self._decisions(self._cluster)

    def _decisions(self, cluster: Cluster) -> Iterable[Metric]:
        """Only the replica that leads has them."""
        yield from _gauges(_cluster_gauges(cluster))
        yield from _counters(_cluster_counts(cluster))
        credits_out = GaugeMetricFamily(
            "p2pdist_tracker_credits_out", "Leases that wait for their first half", labels=["registry"]
        )
        for registry in cluster.swarms.state.registries.values():
            credits_out.add_metric([registry.name], registry.credits_out)
        yield credits_out


def _gauges(rows: Iterable[tuple[str, str, float]]) -> Iterator[Metric]:
    for name, doc, value in rows:
        yield GaugeMetricFamily(f"p2pdist_tracker_{name}", doc, value=value)


def _counters(rows: Iterable[tuple[str, str, float]]) -> Iterator[Metric]:
    for name, doc, value in rows:
        yield CounterMetricFamily(f"p2pdist_tracker_{name}", doc, value=value)


def _standing(standing: Standing) -> Iterator[tuple[str, str, float]]:
    yield "leads", "Whether this replica decides; the sum over all replicas is to be 1", standing.role == "leads"
    yield "orphaned", "Whether no leader has been found for so long that agents were sent away", standing.orphaned
    yield "state_reachable", "Whether the state answers", not standing.state_trouble
    yield "followers", "Replicas that follow this one", len(standing.replicas)
    yield "sessions", "Agents with a session at this replica", standing.sessions
    yield "bans_not_written", "Bans in force that wait for the state", standing.unwritten
    yield "lag_seconds", "How late this process was at worst within the last minute", standing.lag
    if standing.membership is not None:
        seconds = standing.membership.authority_seconds
        yield "authority_seconds", "For how long the cluster's authority is valid", seconds


def _membership(membership: Membership) -> Iterator[tuple[str, str, float]]:
    yield "enrolments", "Nodes that became members here", membership.enrolled
    yield "renewals", "Certificates renewed", membership.renewed
    yield "enrolments_refused", "Enrolments and renewals refused", membership.refused
    yield "enrolments_limited", "Enrolments not looked at after too many wrong tokens", membership.limited


def _cluster_gauges(cluster: Cluster) -> Iterator[tuple[str, str, float]]:
    state, content = cluster.swarms.state, cluster.content
    yield "nodes", "Connected agents", len(state.nodes)
    yield "swarms", "Blobs that somebody waits for", sum(len(sizes) for sizes in state.swarms.values())
    yield "rollouts", "Images being rolled out", sum(len(found.rollouts) for found in state.registries.values())
    yield "blobs", "Blobs that somebody holds whole or waits for", len(state.holders)
    yield "content_entries", "Tags and small content known", len(content)
    yield "content_bytes", "Memory for small content", content.bytes
    yield "preheats", "Preheats that run", cluster.jobs.running
    yield "denied", "Entries of the deny list", len(cluster.denied)


def _cluster_counts(cluster: Cluster) -> Iterator[tuple[str, str, float]]:
    counters, content = cluster.swarms.counters, cluster.content
    yield "leases", "Leases of chunks granted", counters.granted
    yield "streams", "Lone nodes that got a blob's rest as one stream", counters.streams
    yield "leases_expired", "Leases without progress", counters.expired
    yield "leases_failed", "Leases that the upstream failed", counters.failed
    yield "chunks_regranted", "Chunks that had to be leased again", counters.regranted
    yield "upstream_bytes", "Bytes read from upstream, as agents report", counters.bytes_read
    yield "zone_leases", "Leases of chunks from one zone to another", counters.carried
    yield "zone_bytes", "Bytes fetched from one zone into another, as agents report", counters.bytes_carried
    yield "deaths", "Nodes voted dead", counters.deaths
    yield "gone", "Blobs that the upstream doesn't give", counters.gone
    yield "bans", "Nodes shut out", counters.banned
    yield "lies_proved", "Signed lies that were proved", cluster.trials.proved
    yield "accusations_unproved", "Accusations that were to be proved and weren't", cluster.trials.failed
    yield "proof_bytes", "Bytes of blobs hashed as proof", cluster.trials.shown
    yield "over_quota", "What nodes wanted, held or asked beyond their share", counters.over_quota + content.over_quota
    yield "content_hits", "Questions answered without asking upstream", content.hits
    yield "content_fetched", "Answers brought from upstream", content.fetched
    yield "content_poison", "Answers that didn't hash to their digest", content.poison


def _traffic(traffic: Traffic) -> Iterator[tuple[str, str, float]]:
    yield "frames_received", "Frames from agents", traffic.frames_in
    yield "frames_sent", "Frames to agents", traffic.frames_out
    yield "messages_received", "Messages from agents", traffic.messages_in
    yield "messages_sent", "Messages to agents", traffic.messages_out
    yield "received_bytes", "Bytes from agents", traffic.bytes_in
    yield "sent_bytes", "Bytes to agents", traffic.bytes_out
    yield "sessions_rejected", "Sessions refused", traffic.rejected
    yield "frames_malformed", "Frames that aren't of this protocol", traffic.malformed
    yield "sessions_slow", "Sessions dropped because the agent didn't read", traffic.slow
    yield "sessions_silent", "Sessions dropped because the agent was silent", traffic.silent
    yield "frames_delayed", "Frames after which an agent that says too much wasn't listened to", traffic.delayed
    yield "sessions_flooding", "Sessions dropped because the agent said too much", traffic.flooding
    yield "connections_crowded", "Connections closed: too many, or without a request", traffic.crowded


def metrics(cluster: Cluster | None, traffic: Traffic, standing: Standing) -> tuple[bytes, str]:
    """The metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(cluster, traffic, standing))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def status(
    now: float, cluster: Cluster | None, names: Mapping[bytes, str], traffic: Traffic, standing: Standing
) -> dict[str, Any]:
    """For people and for `p2pdist status`; at most `MOST` nodes and swarms. Ids in hex, times in seconds.

    The replica that leads knows everything; the others only themselves, and who leads.
    """
    own = {
        "now": now,
        "replica": asdict(standing),
        "traffic": {
            "messages_in": traffic.messages_in,
            "messages_out": traffic.messages_out,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        },
    }
    return own if cluster is None else own | _decided(now, cluster, names)


def _decided(now: float, cluster: Cluster, names: Mapping[bytes, str]) -> dict[str, Any]:
    state, counters = cluster.swarms.state, cluster.swarms.counters
    return {
        "uptime": now - state.started,
        "nodes": len(state.nodes),
        "node_list": [
            {
                "node": node.id.hex(),
                "name": names.get(node.id, ""),
                "host": node.peer.host,
                "port": node.peer.port,
                "live": node.live,
                "waits_for": len(node.seats),
                "holds": len(node.holds),
                "accusers": cluster.bans.accusers(node.id),
            }
            for node in islice(state.nodes.values(), MOST)
        ],
        "rollouts": [
            {
                "rollout": rollout.id,
                "registry": registry.name,
                "credits_out": rollout.credits_out,
                "credits": rollout.window,
                "swarms": [
                    {
                        "digest": swarm.digest,
                        "size": swarm.size,
                        "chunk_size": swarm.chunk_size,
                        "chunks": swarm.count,
                        "missing": swarm.missing.bit_count(),
                        "leases": len(swarm.leases),
                        "stream": swarm.alone is not None,
                        "members": len(swarm.members),
                        "holders": len(swarm.holders),
                    }
                    for swarm in islice(rollout.swarms, MOST)
                ],
            }
            for registry in state.registries.values()
            for rollout in islice(registry.rollouts, MOST)
        ],
        "registries": [
            {
                "registry": registry.name,
                "credits_out": registry.credits_out,
                "paused_for": max(0.0, registry.paused_until - now),
                "first_half_seconds": registry.pace,
            }
            for registry in state.registries.values()
        ],
        "leases": {
            "granted": counters.granted,
            "streams": counters.streams,
            "expired": counters.expired,
            "failed": counters.failed,
            "chunks_regranted": counters.regranted,
        },
        "upstream_bytes": counters.bytes_read,
        "deaths": counters.deaths,
        "gone": counters.gone,
        "banned": {node.hex(): end for node, end in cluster.bans.active(now).items()},
        "content": {
            "entries": len(cluster.content),
            "bytes": cluster.content.bytes,
            "hits": cluster.content.hits,
            "fetched": cluster.content.fetched,
            "poison": cluster.content.poison,
        },
    }
