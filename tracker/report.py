"""What a tracker says about itself: Prometheus metrics and a status document. Reads, never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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


class _Snapshot(Collector):
    """The cluster at the time of a scrape. Labels carry no digests: they would be without bound."""

    def __init__(self, cluster: Cluster, traffic: Traffic) -> None:
        self._cluster = cluster
        self._traffic = traffic

    def collect(self) -> Iterable[Metric]:
        for name, doc, value in self._gauges():
            yield GaugeMetricFamily(f"p2pdist_tracker_{name}", doc, value=value)
        for name, doc, value in self._counts():
            yield CounterMetricFamily(f"p2pdist_tracker_{name}", doc, value=value)
        credits_out = GaugeMetricFamily(
            "p2pdist_tracker_credits_out", "Leases that wait for their first half", labels=["registry"]
        )
        for registry in self._cluster.swarms.state.registries.values():
            credits_out.add_metric([registry.name], registry.credits_out)
        yield credits_out

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        state, content = self._cluster.swarms.state, self._cluster.content
        yield "nodes", "Connected agents", len(state.nodes)
        yield "swarms", "Blobs that somebody waits for", sum(len(sizes) for sizes in state.swarms.values())
        yield "rollouts", "Images being rolled out", sum(len(found.rollouts) for found in state.registries.values())
        yield "blobs", "Blobs that somebody holds whole or waits for", len(state.holders)
        yield "content_entries", "Tags and small content known", len(content)
        yield "content_bytes", "Memory for small content", content.bytes

    def _counts(self) -> Iterator[tuple[str, str, float]]:
        counters, content, traffic = self._cluster.swarms.counters, self._cluster.content, self._traffic
        yield "leases", "Leases of chunks granted", counters.granted
        yield "streams", "Lone nodes that got a blob's rest as one stream", counters.streams
        yield "leases_expired", "Leases without progress", counters.expired
        yield "leases_failed", "Leases that the upstream failed", counters.failed
        yield "chunks_regranted", "Chunks that had to be leased again", counters.regranted
        yield "upstream_bytes", "Bytes read from upstream, as agents report", counters.bytes_read
        yield "deaths", "Nodes voted dead", counters.deaths
        yield "gone", "Blobs that the upstream doesn't give", counters.gone
        yield "bans", "Nodes shut out", counters.banned
        yield "content_hits", "Questions answered without asking upstream", content.hits
        yield "content_fetched", "Answers brought from upstream", content.fetched
        yield "content_poison", "Answers that didn't hash to their digest", content.poison
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


def metrics(cluster: Cluster, traffic: Traffic) -> tuple[bytes, str]:
    """The metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(cluster, traffic))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def status(now: float, cluster: Cluster, names: Mapping[bytes, str], traffic: Traffic) -> dict[str, Any]:
    """For people and for `p2pdist status`; at most `MOST` nodes and swarms. Ids in hex, times in seconds."""
    state, counters = cluster.swarms.state, cluster.swarms.counters
    return {
        "now": now,
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
        "traffic": {
            "messages_in": traffic.messages_in,
            "messages_out": traffic.messages_out,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        },
    }
