"""One rollout in the laboratory: registry, tracker, agents and pullers as real processes, and what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lab.agents import Agent, Tracker
from lab.daemons import Containerd
from lab.images import image
from lab.lab import Lab
from lab.net import Host
from lab.process import LabError, wait_until
from lab.pulls import Pull, collect, start_command, start_pull, verify
from lab.registry import Registry
from rollout_limit import Link, Ratios, fluid_limits, ratios, starts

REPOSITORY = "bench/image"
TAG = "v1"
NAME = "registry.test:5000"  # what containerd calls the registry
GIB = 1 << 30
SAMPLE = 0.2  # seconds between two looks at the counters
Transport = Literal["agents", "plain", "proxy"]
Driver = Literal["puller", "containerd"]


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
    parallel: int = 3
    seed: int = 7
    agent: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    tracker: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    keep_logs: Path | None = None

    def link(self, node: int) -> Link:
        share = dict(self.slow).get(node, 1.0)
        offset = starts(self.start, self.nodes, self.seed)[node - 1]
        return Link(self.up * share, self.down * share, offset)

    def limits(self) -> list[float]:
        """Of every node, in order; from its own start."""
        return fluid_limits(self.size, self.registry, [self.link(n) for n in range(1, self.nodes + 1)])


@dataclass(frozen=True)
class NodeResult:
    """`seconds` from its own start; None where the node died or hung as planned."""

    node: int
    offset: float
    seconds: float | None
    limit: float
    layer_seconds: tuple[float, ...]
    error: str
    cpu: float
    peak_rss: int
    received: int
    transfer: Mapping[str, float]  # what its agent says: bytes_redundant, busy_answers, ...


@dataclass(frozen=True)
class Result:
    """One rollout. Ratios against the fluid limit; `progress`: (second, received bytes per node, registry's sent)."""

    nodes: list[NodeResult]
    fast: Ratios
    slow: Ratios | None
    egress_ratio: float
    egress_log_ratio: float
    received_ratio: float
    redundant_ratio: float
    cpu_per_gib: float
    tracker_cpu_share: float
    peak_rss: int
    tracker_peak_rss: int
    verified: bool
    late_ratio: float | None
    progress: list[tuple[float, list[int], int]]

    @property
    def errors(self) -> list[str]:
        return [f"node {n.node}: {n.error}" for n in self.nodes if n.error]


class Rollout:
    """The run while it stands. `run` is the whole of it."""

    def __init__(self, settings: Settings, lab: Lab) -> None:
        self.s = settings
        self.lab = lab
        self.hosts: dict[int, Host] = {}
        self.agents: dict[int, Agent] = {}
        self.containerds: dict[str, Containerd] = {}
        self.tracker: Tracker | None = None
        self.pulls: dict[str, Pull] = {}
        self.gone: set[int] = set()

    def run(self) -> Result:
        s = self.s
        sizes = layer_sizes(s.size, s.layers)
        self.image = image(f"rollout-{s.seed}-{s.layers}", sizes)
        self.registry = Registry(self.lab, self.lab.host("registry", up=s.registry, down=s.registry))
        self.registry.push(REPOSITORY, TAG, self.image)
        url = self._transport()
        for number in range(1, s.nodes + 1):
            link = s.link(number)
            self.hosts[number] = self.lab.host(f"n{number}", up=link.up, down=link.down)
        if s.transport == "agents":
            self._agents()
        if s.driver == "containerd":
            self._containerds(url)
        begin = time.time() + 0.8 + 0.06 * s.nodes
        for number, host in self.hosts.items():
            self.pulls[host.name] = self._pull(host, url, begin + s.link(number).offset)
        while time.time() < begin - 0.1:
            time.sleep(0.02)
        mark = self.registry.mark()
        before = self.lab.network.counters()
        cpu_before = {n: a.process.usage().cpu for n, a in self.agents.items()}
        tracker_before = self.tracker.process.usage().cpu if self.tracker else 0.0
        progress = self._watch(begin, before)
        after = self.lab.network.counters()
        used = {n: a.process.usage() for n, a in self.agents.items()}
        tracker_used = self.tracker.process.usage() if self.tracker else None
        told = {n: a.status()["transfer"] for n, a in self.agents.items() if n not in self.gone}
        nodes = []
        limits = s.limits()
        for number, host in self.hosts.items():
            outcome = self.pulls[host.name].outcome
            cpu = used[number].cpu - cpu_before[number] if number in used else 0.0
            rss = used[number].peak_rss if number in used else 0
            got = after[host.name][1] - before[host.name][1]
            offset, limit = s.link(number).offset, limits[number - 1]
            if outcome is None or number in self.gone:
                nodes.append(NodeResult(number, offset, None, limit, (), "", cpu, rss, got, {}))
            else:
                layers = tuple(end - outcome.start for end in outcome.layer_ends)
                seconds = None if outcome.error else outcome.seconds
                nodes.append(
                    NodeResult(
                        number, offset, seconds, limit, layers, outcome.error, cpu, rss, got, told.get(number, {})
                    )
                )
        sent = after["registry"][0] - before["registry"][0]
        verified = verify(self.pulls)
        logged = sum(self.registry.blob_bytes(mark).values())
        late_ratio = self._late(url) if s.late else None
        agent_cpu = sum(node.cpu for node in nodes)
        tracker_cpu = tracker_used.cpu - tracker_before if tracker_used else 0.0
        whole = [node for node in nodes if node.seconds is not None]
        slow = dict(s.slow)
        return Result(
            nodes=nodes,
            fast=_ratios([n for n in whole if n.node not in slow]),
            slow=_ratios([n for n in whole if n.node in slow]) if slow else None,
            egress_ratio=sent / s.size,
            egress_log_ratio=logged / s.size,
            redundant_ratio=sum(n.transfer.get("bytes_redundant", 0) for n in whole) / (s.size * max(1, len(whole))),
            received_ratio=sum(n.received for n in whole) / (s.size * max(1, len(whole))),
            cpu_per_gib=agent_cpu / (s.size * s.nodes / GIB),
            tracker_cpu_share=tracker_cpu / agent_cpu if agent_cpu else 0.0,
            peak_rss=max((node.peak_rss for node in nodes), default=0),
            tracker_peak_rss=tracker_used.peak_rss if tracker_used else 0,
            verified=verified,
            late_ratio=late_ratio,
            progress=progress,
        )

    def _transport(self) -> str:
        """Where a puller asks."""
        s = self.s
        if s.transport == "plain":
            return self.registry.url
        if s.transport == "proxy":
            cache = self.lab.host("cache", up=s.registry, down=s.registry)
            return Registry(self.lab, cache, name="cache", proxy_of=self.registry).url
        # Unshaped: what the tracker costs the network is counted by its own link, not mixed into the registry's.
        self.tracker = Tracker(self.lab, self.lab.host("tracker"), extra=s.tracker)
        return "http://127.0.0.1:5050"

    def _agents(self) -> None:
        for number, host in self.hosts.items():
            self.agents[number] = self._agent(host)
        for agent in self.agents.values():
            agent.wait()
        self._joined(len(self.agents))

    def _joined(self, count: int) -> None:
        tracker = self.tracker
        assert tracker is not None
        wait_until(f"{count} agents at the tracker", lambda: tracker.agents() >= count, 30.0)

    def _agent(self, host: Host) -> Agent:
        assert self.tracker is not None
        registries = {"docker.io": self.registry.url, NAME: self.registry.url}
        return Agent(self.lab, host, trackers=[self.tracker.url], registries=registries, extra=self.s.agent)

    def _containerds(self, url: str) -> None:
        """A containerd on every node, with the agent as its mirror, or with the registry alone."""
        mirror = f'[host."{url}"]\n  capabilities = ["pull", "resolve"]\n' if self.s.transport == "agents" else None
        origin = self.registry.host if self.s.transport != "proxy" else self.lab.network.hosts["cache"]
        for host in self.hosts.values():
            host.names({NAME.split(":", maxsplit=1)[0]: origin.address})
            self.containerds[host.name] = Containerd(self.lab, host, hosts=mirror, registry=NAME)
        for containerd in self.containerds.values():
            containerd.wait()

    def _pull(self, host: Host, url: str, at: float) -> Pull:
        if host.name in self.containerds:
            return start_command(self.lab, host, self.containerds[host.name].command(REPOSITORY, TAG), at=at)
        return start_pull(self.lab, host, url, REPOSITORY, TAG, at=at, parallel=self.s.parallel)

    def _watch(self, begin: float, before: Mapping[str, tuple[int, int]]) -> list[tuple[float, list[int], int]]:
        """Until every pull has ended, doing what is planned for meanwhile."""
        events = sorted(self._events(begin), key=lambda event: event[0])
        limit = max(
            n.offset + m for n, m in zip(map(self.s.link, range(1, self.s.nodes + 1)), self.s.limits(), strict=True)
        )
        # Without peers it takes as many times as long as there are nodes.
        deadline = begin + 60 + limit * (self.s.nodes + 3)
        names = [host.name for host in self.hosts.values()]
        progress: list[tuple[float, list[int], int]] = []

        def sample() -> tuple[float, list[int], int]:
            c = self.lab.network.counters()
            received = [c[name][1] - before[name][1] for name in names]
            return time.time() - begin, received, c["registry"][0] - before["registry"][0]

        while True:
            now = time.time()
            while events and events[0][0] <= now:
                events.pop(0)[1]()
            if now > deadline:
                waiting = [name for name, pull in self.pulls.items() if pull.outcome is None and not pull.abandoned]
                raise LabError(f"still pulling after {deadline - begin:.0f} s: {', '.join(waiting)}")
            if not progress or now - begin - progress[-1][0] >= SAMPLE:
                progress.append(sample())
            if collect(self.pulls, min(SAMPLE, max(0.0, events[0][0] - now)) if events else SAMPLE):
                progress.append(sample())
                return progress

    def _events(self, begin: float) -> list[tuple[float, Callable[[], None]]]:
        events: list[tuple[float, Callable[[], None]]] = []
        for number, at in self.s.kill:
            events.append((begin + at, lambda n=number: self._gone(n, signal.SIGKILL)))  # type: ignore[misc]
        for number, at in self.s.stop:
            events.append((begin + at, lambda n=number: self._gone(n, signal.SIGSTOP)))  # type: ignore[misc]
        if self.s.kill_tracker is not None:
            events.append((begin + self.s.kill_tracker, lambda: self.tracker and self.tracker.process.kill()))  # type: ignore[arg-type,return-value]
        return events

    def _gone(self, number: int, how: signal.Signals) -> None:
        """A machine dies or hangs: its agent and whoever pulls on it."""
        self.gone.add(number)
        if number in self.agents:
            self.agents[number].process.usage()
            self.agents[number].process.send(how)
        self.pulls[self.hosts[number].name].abandon()

    def _late(self, url: str) -> float:
        """One more node, with the registry switched off: everything has to come from the others."""
        s = self.s
        self.registry.stop()
        host = self.lab.host("late", up=s.up, down=s.down)
        agent = self._agent(host)
        agent.wait()
        self._joined(s.nodes - len(self.gone) + 1)
        pull = self._pull(host, url, time.time() + 0.5)
        one = {"late": pull}
        wait_until("the late node", lambda: collect(one, 0.2), 60 + 10 * s.size * 8e-6 / s.down)
        assert pull.outcome is not None
        if pull.outcome.error or not verify(one):
            raise LabError(f"the late node: {pull.outcome.error or 'wrong bytes'}")
        return pull.outcome.seconds / (s.size * 8e-6 / s.down)


def run(settings: Settings, base: Path | None = None) -> Result:
    """One rollout in a laboratory of its own, which is gone afterwards."""
    with Lab(base, logs=settings.keep_logs) as lab:
        return Rollout(settings, lab).run()


def _ratios(nodes: Sequence[NodeResult]) -> Ratios:
    return ratios([n.seconds for n in nodes if n.seconds is not None], [n.limit for n in nodes])


def layer_sizes(size: int, layers: int) -> list[int]:
    """`layers` sizes that add up to `size`, each a multiple of 512 (tar's block)."""
    if size % 512 or size < layers * 2048:
        raise LabError(f"{size} bytes can't be {layers} tar archives: a multiple of 512, at least 2048 each")
    share = size // layers // 512 * 512
    return [share] * (layers - 1) + [size - share * (layers - 1)]
