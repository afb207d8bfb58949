"""One rollout in the laboratory: registry, tracker, agents and pullers as real processes, and what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.agents import MIRROR_PORT, Agent, Tracker, merge
from lab.daemons import Containerd
from lab.images import image
from lab.lab import Lab
from lab.net import Host
from lab.process import LabError, Usage, wait_until
from lab.pulls import Outcome, Pull, collect, start_command, start_pull, verify
from lab.registry import Registry
from lab.sites import SITE_TWO, OtherFlow, SiteLink
from rollout_model import NodeResult, Result, Sample, Settings
from rollout_sites import Trunk, trunk

REPOSITORY = "bench/image"
TAG = "v1"
NAME = "registry.test:5000"  # what containerd calls the registry
ROOM = 64 * 1024  # bytes of an image besides its layers
TOUCHED = 500e6  # bytes of new memory a second, of all pullers together: half of what was measured
SAMPLE = 0.2  # seconds between two looks at the counters
FLOW_AHEAD = 4.0  # seconds in which the other flow has the link to itself

_NOTHING = Usage(0.0, 0)


def run(settings: Settings, base: Path | None = None) -> Result:
    """One rollout in a laboratory of its own, which is gone afterwards."""
    with Lab(base, logs=settings.keep_logs) as lab:
        return Rollout(settings, lab).run()


@dataclass(frozen=True)
class _Moment:
    """What has been counted until now."""

    links: Mapping[str, tuple[int, int]]
    agents: Mapping[int, Usage]
    tracker: Usage
    machine: tuple[float, float]  # idle, total


class Rollout:
    """The run while it stands."""

    def __init__(self, settings: Settings, lab: Lab) -> None:
        self.s = settings
        self.lab = lab
        self.hosts: dict[int, Host] = {}
        self.agents: dict[int, Agent] = {}
        self.containerds: dict[str, Containerd] = {}
        self.tracker: Tracker | None = None
        self.pulls: dict[str, Pull] = {}
        self.gone: set[int] = set()
        self.site_link: SiteLink | None = None
        self.flow: OtherFlow | None = None

    def run(self) -> Result:
        """Builds everything, lets all pull, takes the figures."""
        url = self._build()
        links = self.s.links
        begin = time.time() + 0.8 + self.s.nodes * (0.06 + self.s.size / TOUCHED)  # the pullers must be ready by then
        if self.s.sites is not None and self.s.sites.other_flow is not None:
            begin += FLOW_AHEAD
            self.flow = OtherFlow(self.lab, until=begin + self.s.sites.other_flow)
        for number, host in self.hosts.items():
            self.pulls[host.name] = self._pull(host, url, begin + links[number].offset)
        while time.time() < begin - 0.1:
            time.sleep(0.02)
        mark = self.registry.mark()
        before = self._moment()
        progress = self._watch(begin, before)
        if self.flow is not None:
            self.flow.wait()
            progress.append(self._sample(begin, before))
        after = self._moment()
        nodes = [self._node(number, before, after) for number in self.hosts]
        idle = after.machine[0] - before.machine[0]
        verified = verify(self.pulls)
        return Result(
            settings=self.s,
            nodes=nodes,
            sent=after.links["registry"][0] - before.links["registry"][0],
            logged=sum(self.registry.blob_bytes(mark).values()),
            tracker_cpu=after.tracker.cpu - before.tracker.cpu,
            tracker_peak_rss=after.tracker.peak_rss,
            verified=verified,
            late_ratio=self._late(url) if self.s.late else None,
            idle=idle / (after.machine[1] - before.machine[1]),
            progress=progress,
            trunk=self._trunk(begin, before, progress),
        )

    # --- building ------------------------------------------------------------------------------------------------

    def _build(self) -> str:
        """Returns where a puller asks."""
        s = self.s
        self.registry = Registry(self.lab, self.lab.host("registry", up=s.registry, down=s.registry))
        self.registry.push(REPOSITORY, TAG, image(f"rollout-{s.seed}-{s.layers}", s.layer_sizes))
        if s.sites is not None:
            self.site_link = SiteLink(self.lab, rate=s.sites.rate, delay=s.sites.delay)
        for number, link in s.links.items():
            bridge = SITE_TWO if s.behind(number) else "br0"
            self.hosts[number] = self.lab.host(f"n{number}", up=link.up, down=link.down, bridge=bridge)
        origin = self.registry
        url = self.registry.url
        if s.transport == "proxy":
            cache = self.lab.host("cache", up=s.registry, down=s.registry)
            origin = Registry(self.lab, cache, name="cache", proxy_of=self.registry)
            url = origin.url
        elif s.transport == "agents":
            self._start_agents()
            url = f"http://127.0.0.1:{MIRROR_PORT}"
        if s.driver == "containerd":
            self._start_containerds(origin.host, url if s.transport == "agents" else None)
        return url

    def _start_agents(self) -> None:
        # Unshaped: what the tracker costs the network is not mixed into the registry's egress.
        self.tracker = Tracker(self.lab, self.lab.host("tracker"), extra=self.s.tracker, tls=self.s.tls)
        for number, host in self.hosts.items():
            self.agents[number] = self._agent(host, number)
        for agent in self.agents.values():
            agent.wait()
        self._joined(len(self.agents))

    def _agent(self, host: Host, number: int) -> Agent:
        assert self.tracker is not None
        registries = {"docker.io": self.registry.url, NAME: self.registry.url}
        extra = merge(self.s.tables(number), self.s.agent)
        trackers, token = [self.tracker.url], self.tracker.token
        return Agent(self.lab, host, trackers=trackers, registries=registries, extra=extra, token=token)

    def _joined(self, count: int) -> None:
        tracker = self.tracker
        assert tracker is not None
        wait_until(f"{count} agents at the tracker", lambda: tracker.agents() >= count, 90.0)

    def _start_containerds(self, origin: Host, mirror: str | None) -> None:
        """A containerd on every node, with the agent as its mirror, or with the registry alone."""
        hosts = f'[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n' if mirror is not None else None
        for host in self.hosts.values():
            host.names({NAME.split(":", maxsplit=1)[0]: origin.address})
            self.containerds[host.name] = Containerd(self.lab, host, hosts=hosts, registry=NAME)
        for containerd in self.containerds.values():
            containerd.wait()

    def _pull(self, host: Host, url: str, at: float) -> Pull:
        if host.name in self.containerds:
            return start_command(self.lab, host, self.containerds[host.name].command(REPOSITORY, TAG), at=at)
        return start_pull(
            self.lab, host, url, REPOSITORY, TAG, at=at, parallel=self.s.parallel, room=self.s.size + ROOM
        )

    # --- while it runs -------------------------------------------------------------------------------------------

    def _watch(self, begin: float, before: _Moment) -> list[Sample]:
        """Until every pull has ended, doing what is planned for meanwhile."""
        events = sorted(self._events(begin), key=lambda event: event[0])
        limits = self.s.limits
        longest = max(link.offset + limits[number] for number, link in self.s.links.items())
        # Without peers it takes as many times as long as there are nodes.
        deadline = begin + 60 + longest * (self.s.nodes + 3)
        progress: list[Sample] = []
        while True:
            now = time.time()
            while events and events[0][0] <= now:
                events.pop(0)[1]()
            if now > deadline:
                waiting = [name for name, pull in self.pulls.items() if pull.outcome is None and not pull.abandoned]
                raise LabError(f"still pulling after {deadline - begin:.0f} s: {', '.join(waiting)}")
            if not progress or now - begin - progress[-1].second >= SAMPLE:
                progress.append(self._sample(begin, before))
            if collect(self.pulls, min(SAMPLE, max(0.0, events[0][0] - now)) if events else SAMPLE):
                return [*progress, self._sample(begin, before)]

    def _events(self, begin: float) -> list[tuple[float, Callable[[], None]]]:
        events: list[tuple[float, Callable[[], None]]] = []
        for plan, how in ((self.s.kill, signal.SIGKILL), (self.s.stop, signal.SIGSTOP)):
            events += [(begin + at, partial(self._lose, number, how)) for number, at in plan]
        if self.s.kill_tracker is not None and self.tracker is not None:
            events.append((begin + self.s.kill_tracker, self.tracker.kill))
        return events

    def _lose(self, number: int, how: signal.Signals) -> None:
        """A machine dies or hangs: its agent and whoever pulls on it."""
        self.gone.add(number)
        if number in self.agents:
            self.agents[number].process.usage()  # the last look
            self.agents[number].process.send(how)
        self.pulls[self.hosts[number].name].abandon()

    def _sample(self, begin: float, before: _Moment) -> Sample:
        links = self.lab.network.counters()
        received = [links[host.name][1] - before.links[host.name][1] for host in self.hosts.values()]
        crossed = links["wan2"][0] - before.links["wan2"][0] if self.site_link is not None else 0
        return Sample(time.time() - begin, received, links["registry"][0] - before.links["registry"][0], crossed)

    # --- afterwards ----------------------------------------------------------------------------------------------

    def _moment(self) -> _Moment:
        fields = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        return _Moment(
            links=self.lab.network.counters(),
            agents={number: agent.process.usage() for number, agent in self.agents.items()},
            tracker=self.tracker.process.usage() if self.tracker is not None else _NOTHING,
            machine=(fields[3] + fields[4], sum(fields)),
        )

    def _trunk(self, begin: float, before: _Moment, progress: list[Sample]) -> Trunk | None:
        if self.site_link is None or self.s.sites is None:
            return None
        crossed = [(sample.second, sample.crossed) for sample in progress]
        back = self.site_link.crossed()[1] - before.links["wan1"][0]
        if self.flow is None:
            return trunk(self.s.sites, self.s.size, crossed, back)
        arrived = self.flow.arrived()
        return trunk(
            self.s.sites, self.s.size, crossed, back, lambda start, end: arrived.between(begin + start, begin + end)
        )

    def _node(self, number: int, before: _Moment, after: _Moment) -> NodeResult:
        name = self.hosts[number].name
        outcome = self.pulls[name].outcome
        lost = outcome is None or number in self.gone
        shown = Outcome(0.0, 0.0, (), "") if outcome is None or lost else outcome
        return NodeResult(
            node=number,
            offset=self.s.links[number].offset,
            limit=self.s.limits[number],
            seconds=None if lost or shown.error else shown.seconds,
            layer_seconds=() if shown.error else tuple(end - shown.start for end in shown.layer_ends),
            error=shown.error,
            cpu=after.agents.get(number, _NOTHING).cpu - before.agents.get(number, _NOTHING).cpu,
            peak_rss=after.agents.get(number, _NOTHING).peak_rss,
            received=after.links[name][1] - before.links[name][1],
            transfer={} if lost or number not in self.agents else self.agents[number].status()["transfer"],
        )

    def _late(self, url: str) -> float:
        """One more node, with the registry switched off: everything has to come from the others."""
        s = self.s
        self.registry.stop()
        host = self.lab.host("late", up=s.up, down=s.down)
        self._agent(host, s.nodes + 1).wait()
        self._joined(s.nodes - len(self.gone) + 1)
        pull = self._pull(host, url, time.time() + 0.5)
        one = {"late": pull}
        limit = s.size * 8e-6 / s.down
        wait_until("the late node", lambda: collect(one, 0.2), 60 + 10 * limit)
        assert pull.outcome is not None
        if pull.outcome.error or not verify(one):
            raise LabError(f"the late node: {pull.outcome.error or 'wrong bytes'}")
        return pull.outcome.seconds / limit
