"""What a rollout looks like as text and as JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rollout_model import Result, Settings
from rollout_sites import Trunk

MIB = 1 << 20


def describe(s: Settings) -> str:
    """The settings in one line."""
    parts = [f"{s.nodes} nodes", _rates(s), f"{s.layers} x {s.size / s.layers / MIB:g} MiB", s.start]
    parts += [f"kill {n}@{at:.1f}s" for n, at in s.kill] + [f"stop {n}@{at:.1f}s" for n, at in s.stop]
    parts += [f"tracker dies@{s.kill_tracker:.1f}s"] if s.kill_tracker is not None else []
    parts += [f"node {n} at {share:g} of the rate" for n, share in s.slow]
    parts += ["one late"] if s.late else []
    if s.sites is not None:
        parts += [f"sites {s.sites.first}+{s.sites.second}", f"link {s.sites.rate:g} Mbit/s {s.sites.delay:g} ms"]
        parts += [f"other flow for {s.sites.other_flow:g} s"] if s.sites.other_flow is not None else []
    parts += [f"by {s.driver}"] if s.driver != "puller" else []
    parts += ["TLS"] if s.tls else []
    return f"{s.engine if s.transport == 'agents' else s.transport}: " + ", ".join(parts)


def print_rollout(settings: Settings, result: Result, number: int, runs: int, *, nodes: bool) -> None:
    head = f" ({number}/{runs})" if runs > 1 else ""
    print(f"{describe(settings)}{head}")
    if nodes:
        for n in result.nodes:
            seconds = f"{n.seconds:7.2f} s {n.seconds / n.limit:6.3f}" if n.seconds is not None else "   gone        "
            layers = " ".join(f"{t:.1f}" for t in n.layer_seconds)
            print(
                f"  n{n.node:<3} +{n.offset:5.1f} {seconds}  received {n.received / settings.size:5.3f}"
                f"  cpu {n.cpu:5.2f} s  rss {n.peak_rss / MIB:4.0f} MiB  layers {layers} {n.error}"
            )
    limits = sorted({round(n.limit, 2) for n in result.nodes})
    slow = f"  slow nodes {result.slow.p50:.3f} / {result.slow.last:.3f}" if result.slow else ""
    late = f"  late node {result.late_ratio:.3f}" if result.late_ratio is not None else ""
    print(
        f"  limit {' '.join(f'{x:g}' for x in limits)} s  p50/limit {result.fast.p50:.3f}"
        f"  last/limit {result.fast.last:.3f}{slow}{late}\n"
        f"  egress/size {result.egress_ratio:.3f} (by the log {result.egress_log_ratio:.3f})"
        f"  received/size {result.received_ratio:.3f}  redundant {result.redundant_ratio:.4f}"
        f"  idle {result.idle:.0%}  verified {'yes' if result.verified else 'NO'}"
    )
    if result.trunk is not None:
        print(f"  {_trunk(result.trunk)}")
    if settings.transport == "agents":
        print(
            f"  cpu {result.cpu_per_gib:.1f} s/GiB  tracker {result.tracker_cpu_share:.1%} of the agents'"
            f"  peak rss {result.peak_rss / MIB:.0f} MiB, tracker {result.tracker_peak_rss / MIB:.0f} MiB"
        )
        print(f"  {_sums(result)}")
    for error in result.errors:
        print(f"  ERROR {error}")


def medians(results: Sequence[Result]) -> dict[str, Any]:
    """Of each figure over the runs, with the runs themselves."""

    def median(values: list[float]) -> float:
        return round(statistics.median(values), 4)

    first = results[0]
    row: dict[str, Any] = {
        "p50_ratio": median([r.fast.p50 for r in results]),
        "last_ratio": median([r.fast.last for r in results]),
        "last_over_limit_seconds": median([r.fast.over for r in results]),
        "egress_ratio": median([r.egress_ratio for r in results]),
        "egress_log_ratio": median([r.egress_log_ratio for r in results]),
        "received_ratio": median([r.received_ratio for r in results]),
        "redundant_ratio": median([r.redundant_ratio for r in results]),
        "cpu_seconds_per_gib": median([r.cpu_per_gib for r in results]),
        "tracker_cpu_share": median([r.tracker_cpu_share for r in results]),
        "idle_share": median([r.idle for r in results]),
        "peak_rss": max(r.peak_rss for r in results),
        "tracker_peak_rss": max(r.tracker_peak_rss for r in results),
        "verified": all(r.verified for r in results),
        "errors": [error for r in results for error in r.errors],
    }
    if first.slow is not None:
        row["slow_p50_ratio"] = median([r.slow.p50 for r in results if r.slow])
        row["slow_last_ratio"] = median([r.slow.last for r in results if r.slow])
    if first.late_ratio is not None:
        row["late_ratio"] = median([r.late_ratio for r in results if r.late_ratio is not None])
    if first.trunk is not None:
        row["link_copies"] = median([r.trunk.copies for r in results if r.trunk])
        for figure in ("flow_alone", "flow_while", "transfer_after"):
            shares = [getattr(r.trunk, figure) for r in results if getattr(r.trunk, figure) is not None]
            if shares:
                row[f"{figure}_share"] = median(shares)
    row["runs"] = [
        {
            "p50_ratio": round(r.fast.p50, 4),
            "last_ratio": round(r.fast.last, 4),
            "egress_ratio": round(r.egress_ratio, 4),
            "trunk": asdict(r.trunk) if r.trunk is not None else None,
            "nodes": [asdict(node) for node in r.nodes],
        }
        for r in results
    ]
    return row


def strict_json(row: dict[str, Any]) -> str:
    """Strict JSON: what is not finite (no node survived) is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(row))


def settings_as_dict(settings: Settings) -> dict[str, Any]:
    row = asdict(settings)
    del row["keep_logs"]
    return row


def _sums(result: Result) -> str:
    """What the agents count, summed over the nodes; bytes as MiB."""
    sums: dict[str, float] = {}
    for node in result.nodes:
        for name, value in node.transfer.items():
            sums[name] = sums.get(name, 0) + value
    shown = [
        f"{name.removeprefix('bytes_')} {value / MIB:.1f} MiB" if name.startswith("bytes_") else f"{name} {value:g}"
        for name, value in sums.items()
    ]
    return "agents: " + ", ".join(shown).replace("_", " ")


def _trunk(trunk: Trunk) -> str:
    text = f"link: {trunk.copies:.3f} copies, {trunk.back / MIB:.1f} MiB back"
    for share, what in (
        (trunk.flow_alone, "other flow alone"),
        (trunk.flow_while, "beside the transfer"),
        (trunk.transfer_after, "transfer after it"),
    ):
        text += f"; {what} {share:.0%} of the link" if share is not None else ""
    return text


def _rates(s: Settings) -> str:
    rates = f"{s.up:g}" if s.up == s.down else f"{s.up:g} up {s.down:g} down"
    return f"{rates} Mbit/s" + ("" if s.registry == s.down == s.up else f" (registry {s.registry:g})")
