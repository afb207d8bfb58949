"""What came of a simulated rollout."""

from __future__ import annotations

from typing import Any

from simulate_run import Simulation


def result(run: Simulation) -> dict[str, Any]:
    """Ratios to the limit, each node from its own start; what is counted is per node or per chunk."""
    n = run.o.nodes

    def ratios(slow: bool) -> list[float]:
        found = []
        for node in run.nodes[1:]:
            if node.finished is None or (node.number in run.slow) != slow:
                continue
            own = max(run.size / run.rates[node.number], run.limit - node.started)
            found.append((node.finished - node.started) / own)
        return sorted(found)

    fast, slow = ratios(False), ratios(True)
    alive = len(fast) + len(slow)
    return {
        "nodes": n,
        "chunks": run.count,
        "limit_seconds": round(run.limit, 2),
        "p50_ratio": round(fast[len(fast) // 2], 3),
        "p99_ratio": round(fast[int(len(fast) * 0.99)], 3),
        "last_ratio": round(fast[-1], 3),
        **({"slow_p50_ratio": round(slow[len(slow) // 2], 3), "slow_last_ratio": round(slow[-1], 3)} if slow else {}),
        "egress_ratio": round(run.read / run.count, 3),
        **({"read_alone_ratio": round(run.counts["read alone"] / run.count, 3)} if run.o.kill_tracker else {}),
        "stalled": run.counts["stalled"],
        "redundant_ratio": round(run.counts["redundant"] / run.count / alive, 4),
        "tracker_messages_per_chunk": round(
            (run.counts["to tracker"] + run.counts["from tracker"] - 3 * n) / run.count, 2
        ),
        "tracker_messages_per_node": round((run.counts["to tracker"] + run.counts["from tracker"]) / n, 2),
        "have_per_node_and_chunk": round(run.counts["have"] / run.count / n, 2),
        "requests_per_node_and_chunk": round(run.counts["requests"] / run.count / n, 2),
    }
