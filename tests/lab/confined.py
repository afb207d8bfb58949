"""A node whose dockerd and containerd have no way out but their agent, with a registry and a tracker of its own.

Nothing answers at the names of the registries inside the node: what a daemon gets, it has from the agent.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from lab.agents import MIRROR_PORT, Agent, Tables, Tracker
from lab.daemons import Containerd, Docker
from lab.lab import Lab
from lab.process import Process, wait_until
from lab.registry import Registry

REGISTRY = "registry.test:5000"
NOWHERE = "127.0.0.9"  # nothing listens there
HOSTS = f"""server = "http://127.0.0.1:{MIRROR_PORT}"
[host."http://127.0.0.1:{MIRROR_PORT}"]
  capabilities = ["pull", "resolve"]
"""
NAMES = {"dockerd": "docker.io", "containerd": REGISTRY}  # by which name of the one registry each daemon's users pull


class Confined:
    """Everything is started, and the agent has its session. `tracker` and `agent`: tables for their files."""

    def __init__(self, lab: Lab, *, tracker: Tables | None = None, agent: Tables | None = None) -> None:
        self.lab = lab
        self.registry = Registry(lab, lab.host("registry"))
        self.node = lab.host("node")
        self.node.names({"registry.test": NOWHERE, "registry-1.docker.io": NOWHERE})
        self.tracker = Tracker(lab, lab.host("tracker"), extra=tracker)
        names = dict.fromkeys(NAMES.values(), self.registry.url)
        self.agent = Agent(lab, self.node, trackers=[self.tracker.url], registries=names, extra=agent)
        containerd = Containerd(lab, self.node, hosts=HOSTS, registry=REGISTRY)
        docker = Docker(lab, self.node, containerd, mirror=self.agent.url, spare=None, registry=REGISTRY)
        self.programs: dict[str, Docker | Containerd] = {"dockerd": docker, "containerd": containerd}
        self._env = {"DOCKER_HOST": f"unix://{docker.directory}/sock", "CONTAINERD_ADDRESS": containerd.socket}
        self._numbers = itertools.count()
        for one in (self.agent, containerd, docker):
            one.wait()
        wait_until("the agent at the tracker", lambda: self.tracker.agents() == 1)

    @property
    def hosts(self) -> Path:
        """Of the node's containerd: the folder of its hosts.toml files."""
        return self.lab.path(self.node.name, "containerd", "certs.d")

    def name(self, program: str, repository: str) -> str:
        """What the program's users call the image."""
        return f"{NAMES[program]}/{repository}:v1"

    def pull(self, program: str, repository: str) -> Process:
        """By that name, as they do; has ended."""
        name = self.name(program, repository)
        if program == "dockerd":
            return self.run("docker", "pull", name)
        return self.run("ctr", "images", "pull", "--hosts-dir", str(self.hosts), name)

    def run(self, *argv: str) -> Process:
        """Inside the node, where `docker` and `ctr` find its daemons. Has ended; a log of its own."""
        process = self.lab.start(f"{next(self._numbers)}-{Path(argv[0]).name}", argv, self.node, env=self._env)
        process.wait(90)
        return process
