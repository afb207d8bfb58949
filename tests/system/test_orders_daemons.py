"""Real daemons behind an agent that has orders: what was pulled ahead is there, what is denied is refused.

Nothing answers at the names of the registries inside the node: what a daemon gets, it has from the agent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab.agents import MIRROR_PORT, Agent, Tracker
from lab.agents import program as program_file
from lab.daemons import Containerd, Docker
from lab.images import image
from lab.lab import Lab
from lab.net import Host
from lab.process import Process, wait_until
from lab.registry import Registry

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1 << 20
REGISTRY = "registry.test:5000"
NOWHERE = "127.0.0.9"  # nothing listens there
HOSTS = f"""server = "http://127.0.0.1:{MIRROR_PORT}"
[host."http://127.0.0.1:{MIRROR_PORT}"]
  capabilities = ["pull", "resolve"]
"""
NAMES = {"dockerd": "docker.io", "containerd": REGISTRY}
WHY = "CVE-2026-1: runs as root"


@dataclass
class Site:
    """A registry, a tracker, and one node with an agent, dockerd and containerd."""

    lab: Lab
    registry: Registry
    tracker: Tracker
    data: Path
    node: Host
    programs: dict[str, Docker | Containerd]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def name(self, program: str, repository: str) -> str:
        return f"{NAMES[program]}/{repository}:v1"

    def pull(self, program: str, repository: str) -> Process:
        name = self.name(program, repository)
        if program == "dockerd":
            return self.run("docker", "pull", name)
        hosts = self.lab.path(self.node.name, "containerd", "certs.d")
        return self.run("ctr", "images", "pull", "--hosts-dir", str(hosts), name)

    def preheat(self, *words: str) -> Process:
        return self.run(program_file("p2pdist"), "preheat", *words, "--tracker", self.tracker.url)

    def deny(self, *words: str) -> Process:
        return self.run(program_file("p2pdist-tracker"), "deny", *words, "--data", str(self.data))

    def run(self, *argv: str) -> Process:
        """Has ended; a log of its own."""
        docker, containerd = self.programs["dockerd"], self.programs["containerd"]
        env = {"DOCKER_HOST": f"unix://{docker.directory}/sock", "CONTAINERD_ADDRESS": containerd.socket}
        process = self.lab.start(f"{next(self.numbers)}-{Path(argv[0]).name}", argv, self.node, env=env)
        process.wait(90)
        return process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(logs=tmp_path_factory.mktemp("orders-logs")) as lab:
        registry = Registry(lab, lab.host("registry"))
        node = lab.host("node")
        node.names({"registry.test": NOWHERE, "registry-1.docker.io": NOWHERE})
        names = dict.fromkeys(NAMES.values(), registry.url)
        data = lab.path("tracker-data")
        extra = {"": {"data_directory": str(data)}, "preheat": {"settle": 0.0}}
        tracker = Tracker(lab, lab.host("tracker"), extra=extra)
        agent = Agent(lab, node, trackers=[tracker.url], registries=names)
        containerd = Containerd(lab, node, hosts=HOSTS, registry=REGISTRY)
        docker = Docker(lab, node, containerd, mirror=agent.url, spare=None, registry=REGISTRY)
        for one in (agent, containerd, docker):
            one.wait()
        wait_until("the agent at the tracker", lambda: tracker.agents() == 1)
        yield Site(lab, registry, tracker, data, node, {"dockerd": docker, "containerd": containerd})


@pytest.mark.parametrize("program", NAMES)
def test_an_image_pulled_ahead_is_there_with_the_registry_gone_and_one_denied_is_refused_and_its_user_reads_why(
    site: Site, program: str
) -> None:
    repository = f"orders-{program}/app"
    what = image(f"orders-{program}", [MIB, 128 * 1024])
    site.registry.push(repository, "v1", what)
    ordered = site.preheat(site.name(program, repository), "--wait")
    assert ordered.status == 0, ordered.tail()
    assert "done" in ordered.tail()
    site.registry.stop()
    try:
        pull = site.pull(program, repository)
        assert pull.status == 0, pull.tail()
    finally:
        site.registry.restart()

    denied = site.deny("add", what.digest, "--why", WHY)
    assert denied.status == 0, denied.tail()
    wait_until("the agent's refusal", lambda: site.pull(program, repository).status != 0, 60.0)  # within seconds
    pull = site.pull(program, repository)
    if program == "dockerd":
        # After a mirror's refusal dockerd asks Docker Hub itself, and its user reads what came of that; why the agent
        # refused stands in dockerd's log. Asked for by the agent's address, it says so to its user.
        assert WHY in site.programs[program].process.tail(20_000)
        pull = site.run("docker", "pull", f"127.0.0.1:{MIRROR_PORT}/docker.io/{repository}:v1")
    assert pull.status != 0
    assert "denied" in pull.tail().lower() and WHY in pull.tail(), pull.tail()

    removed = site.deny("remove", what.digest)
    assert removed.status == 0, removed.tail()
    wait_until("the image again", lambda: site.pull(program, repository).status == 0, 60.0)
