"""The cluster of the system tests: a registry, a tracker, nodes with an agent and every container program, and one
host without an agent, whose direct pulls say what the right result is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lab.agents import Agent, Tracker
from lab.daemons import Containerd, Docker, Podman, Puller, Skopeo
from lab.images import Image, Index
from lab.lab import Lab
from lab.net import Host
from lab.process import wait_until
from lab.registry import Registry
from p2pdist.cli.daemons import snippets

REGISTRY = "registry.test:5000"  # as image names spell it, for the programs that can name a registry
PROGRAMS = ("dockerd", "containerd", "podman", "skopeo")


@dataclass(frozen=True)
class Node:
    """One host with its programs; `agent` is None on the host that asks the registry itself."""

    host: Host
    agent: Agent | None
    programs: dict[str, Puller]

    def received(self) -> int:
        return self.host.received()


class Cluster:
    """`rate`: Mbit/s of every node's link and of the registry's, both ways."""

    def __init__(self, lab: Lab, nodes: int, *, rate: float) -> None:
        self.lab = lab
        self.registry = Registry(lab, lab.host("registry", up=rate, down=rate))
        self.tracker = Tracker(lab, lab.host("tracker"))
        self.nodes = [self._node(f"n{number}", rate, agent=True) for number in range(1, nodes + 1)]
        self.direct = self._node("direct", rate, agent=False)
        self._numbers = itertools.count(1)
        for node in [*self.nodes, self.direct]:
            if node.agent is not None:
                node.agent.wait()
            for program in node.programs.values():
                if isinstance(program, Docker | Containerd):
                    program.wait()

    def publish(self, what: Image | Index) -> str:
        """Pushes the image under a repository of its own, which nobody has seen, as `v1`."""
        repository = f"library/app{next(self._numbers)}"
        self.registry.push(repository, "v1", what)
        return repository

    def heal(self) -> None:
        """Everything that a test has stopped runs again and has joined."""
        self.registry.restart()
        self.tracker.restart()
        for node in self.nodes:
            assert node.agent is not None
            node.agent.restart()
        self.wait_joined(len(self.nodes))

    def wait_joined(self, count: int) -> None:
        """Until the tracker has a session with that many agents."""
        wait_until(f"{count} agents at the tracker", lambda: self.tracker.agents() >= count, 30.0)

    def from_upstream(self, since: int) -> dict[str, int]:
        """Bytes per blob that the registry has sent to nodes with an agent since then."""
        return self.registry.blob_bytes(since, without={self.direct.host.address})

    def _node(self, name: str, rate: float, *, agent: bool) -> Node:
        host = self.lab.host(name, up=rate, down=rate)
        host.names({REGISTRY.split(":")[0]: self.registry.host.address})
        files = {snippet.daemon.split(",")[0]: snippet.text for snippet in snippets("127.0.0.1:5050", [REGISTRY])}
        containerd = Containerd(self.lab, host, hosts=files["containerd"] if agent else None, registry=REGISTRY)
        mirror, spare = ("http://127.0.0.1:5050", self.registry.url) if agent else (None, None)
        docker = Docker(self.lab, host, containerd, mirror=mirror, spare=spare, registry=REGISTRY)
        registries = files["podman"] if agent else ""
        podman = Podman(self.lab, host, registries=registries, registry=REGISTRY)
        skopeo = Skopeo(self.lab, host, registries=registries, registry=REGISTRY)
        programs: Sequence[Puller] = (docker, containerd, podman, skopeo)
        return Node(host, self._agent(host) if agent else None, {program.name: program for program in programs})

    def _agent(self, host: Host) -> Agent:
        names = {"docker.io": self.registry.url, REGISTRY: self.registry.url}
        return Agent(self.lab, host, trackers=[self.tracker.url], registries=names)
