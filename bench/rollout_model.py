"""What a rollout is told and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lab.process import LabError
from rollout_limit import Link, Ratios, fluid_limits, ratios, starts
from rollout_sites import Sites, Trunk

GIB = 1 << 30
Transport = Literal["agents", "plain", "proxy"]
Driver = Literal["puller", "containerd"]
Engine = Literal["mesh", "bittorrent", "gateways"]


@dataclass(frozen=True)
class Settings:
    """What is run. Rates in Mbit/s, times in seconds, sizes in bytes; node numbers count from 1."""

    nodes: int = 12
    up: float = 50.0
    down: float = 50.0
    registry: float = 50.0
    layers: int = 1
    size: int = 64 << 20
    start: str = "together"
    kill: tuple[tuple[int, float], ...] = ()
    stop: tuple[tuple[int, float], ...] = ()
    kill_tracker: float | None = None
    slow: tuple[tuple[int, float], ...] = ()
    late: bool = False
    transport: Transport = "agents"
    driver: Driver = "puller"
    engine: Engine = "mesh"
    tls: bool = False
    sites: Sites | None = None
    parallel: int = 3
    seed: int = 7
    agent: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    tracker: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    keep_logs: Path | None = None

    @property
    def links(self) -> dict[int, Link]:
        """Every node's link and offset, by its number."""
        offsets = starts(self.start, self.nodes, self.seed)
        shares = dict(self.slow)
        return {
            number: Link(
                self.up * shares.get(number, 1.0),
                self.down * shares.get(number, 1.0),
                offset,
                self.sites.rate if self.behind(number) and self.sites is not None else math.inf,
            )
            for number, offset in enumerate(offsets, start=1)
        }

    def behind(self, number: int) -> bool:
        """The node is in the second site."""
        return self.sites is not None and number > self.sites.first

    def gateway(self, number: int) -> bool:
        """The node may be a gateway: two of each site, so that one is left when the other dies."""
        return self.sites is not None and (number - self.sites.first if self.behind(number) else number) <= 2

    def tables(self, number: int) -> dict[str, dict[str, object]]:
        """What node `number`'s configuration says besides addresses."""
        tables: dict[str, dict[str, object]] = {
            "peer": {"engine": self.engine if self.engine != "gateways" else "mesh"}
        }
        if self.sites is not None:
            site = "two" if self.behind(number) else "one"
            tables["node"] = {"labels": [f"{'site' if self.engine == 'gateways' else 'zone'}={site}"]}
            if self.engine == "gateways":
                tables["site"] = {"gateway": self.gateway(number), "far_from_upstream": self.behind(number)}
        return tables

    @property
    def limits(self) -> dict[int, float]:
        """Of every node, by its number; from its own start."""
        links = self.links
        return dict(zip(links, fluid_limits(self.size, self.registry, list(links.values())), strict=True))

    @property
    def layer_sizes(self) -> list[int]:
        """They add up to `size`, each a multiple of 512 (tar's block). LabError where that can't be."""
        if self.size % 512 or self.size < self.layers * 2048:
            raise LabError(
                f"{self.size} bytes can't be {self.layers} tar archives: multiples of 512, at least 2048 each"
            )
        share = self.size // self.layers // 512 * 512
        return [share] * (self.layers - 1) + [self.size - share * (self.layers - 1)]


@dataclass(frozen=True)
class NodeResult:
    """One node. `seconds` from its own start; None where it died or hung as planned, or its pull failed (`error`).

    `received`: bytes that crossed its downlink; `cpu`: seconds its agent used meanwhile; `transfer`: what its agent
    counted (bytes_redundant, busy_answers, ...).
    """

    node: int
    offset: float
    limit: float
    seconds: float | None
    layer_seconds: tuple[float, ...]
    error: str
    cpu: float
    peak_rss: int
    received: int
    transfer: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """The counters at one moment, in bytes since the beginning; `second` counts from there."""

    second: float
    received: list[int]  # per node
    sent: int  # by the registry
    crossed: int = 0  # from the first site to the second


@dataclass(frozen=True)
class Result:
    """One rollout. `sent`: bytes that left the registry's link; `logged`: bytes of blobs by its request log;
    `late_ratio`: time/limit of the node that came afterwards; `idle`: share of the machine's CPU time left unused.
    """

    settings: Settings
    nodes: list[NodeResult]
    sent: int
    logged: int
    tracker_cpu: float
    tracker_peak_rss: int
    verified: bool
    late_ratio: float | None
    idle: float
    progress: list[Sample]
    trunk: Trunk | None = None

    @property
    def whole(self) -> list[NodeResult]:
        """The nodes that got it all."""
        return [node for node in self.nodes if node.seconds is not None]

    @property
    def fast(self) -> Ratios:
        """Of the nodes at the full rate."""
        return _ratios([node for node in self.whole if node.node not in dict(self.settings.slow)])

    @property
    def slow(self) -> Ratios | None:
        """Of the slow ones, where there are any."""
        slow = dict(self.settings.slow)
        return _ratios([node for node in self.whole if node.node in slow]) if slow else None

    @property
    def egress_ratio(self) -> float:
        return self.sent / self.settings.size

    @property
    def egress_log_ratio(self) -> float:
        return self.logged / self.settings.size

    @property
    def received_ratio(self) -> float:
        """Bytes over the links of the nodes that got it all, per byte of image."""
        return sum(node.received for node in self.whole) / (self.settings.size * max(1, len(self.whole)))

    @property
    def redundant_ratio(self) -> float:
        """Bytes that agents received and threw away, per byte of image."""
        redundant = sum(node.transfer.get("bytes_redundant", 0) for node in self.whole)
        return redundant / (self.settings.size * max(1, len(self.whole)))

    @property
    def agent_cpu(self) -> float:
        return sum(node.cpu for node in self.nodes)

    @property
    def cpu_per_gib(self) -> float:
        """Seconds of the agents' CPU per GiB that arrived on nodes."""
        return self.agent_cpu / (self.settings.size * max(1, len(self.whole)) / GIB)

    @property
    def tracker_cpu_share(self) -> float:
        """Of the agents' CPU."""
        return self.tracker_cpu / self.agent_cpu if self.agent_cpu else 0.0

    @property
    def peak_rss(self) -> int:
        """The largest agent's."""
        return max((node.peak_rss for node in self.nodes), default=0)

    @property
    def errors(self) -> list[str]:
        return [f"node {node.node}: {node.error}" for node in self.nodes if node.error]


def _ratios(nodes: Sequence[NodeResult]) -> Ratios:
    return ratios([n.seconds for n in nodes if n.seconds is not None], [n.limit for n in nodes])
