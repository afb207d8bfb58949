"""What Prometheus gets; no digest, repository or peer in any label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


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


class Metrics:
    """The status as metrics."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """For prometheus_client."""
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
        checked = status["store"]["rechecked_bytes"]
        yield CounterMetricFamily("p2pdist_store_rechecked_bytes", "Bytes hashed again by and by", value=checked)
        damaged = status["store"]["damaged"]
        yield CounterMetricFamily("p2pdist_store_damaged", "Stored blobs that the disk had damaged", value=damaged)
        for name, value in status["orders"].items():
            kind = GaugeMetricFamily if name in {"denied_entries", "preheats_running"} else CounterMetricFamily
            yield kind(f"p2pdist_{name}", name.replace("_", " "), value=value)
        yield GaugeMetricFamily("p2pdist_transfers", "Blobs on their way", value=len(status["transfers"]))
