"""Real daemons behind an agent that has orders: what was pulled ahead is there, what is denied is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab.agents import MIRROR_PORT
from lab.agents import program as program_file
from lab.confined import NAMES, Confined
from lab.images import image
from lab.lab import Lab
from lab.process import Process, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1 << 20
WHY = "CVE-2026-1: runs as root"


class Site(Confined):
    """One node, and orders for it."""

    def __init__(self, lab: Lab) -> None:
        self._data = lab.path("tracker-data")
        super().__init__(lab, tracker={"": {"data_directory": str(self._data)}, "preheat": {"settle": 0.0}})

    def preheat(self, *words: str) -> Process:
        return self.run(program_file("p2pdist"), "preheat", *words, "--tracker", self.tracker.url)

    def deny(self, *words: str) -> Process:
        return self.run(program_file("p2pdist-tracker"), "deny", *words, "--data", str(self._data))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(logs=tmp_path_factory.mktemp("orders-logs")) as lab:
        yield Site(lab)


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
