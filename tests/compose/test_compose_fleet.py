"""The image and the cluster of compose/: what users run, built and started by real dockerd and docker-compose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from engine import BASE, COMPOSE, IMAGE, Engine
from lab.lab import Lab
from lab.process import LabError, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

FILE = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVERS = [name for name, service in FILE["services"].items() if "healthcheck" in service]
MB = 1_000_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Lab(logs=tmp_path_factory.mktemp("engine-logs")) as lab:
        made = Engine(lab)
        try:
            made.build()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def fleet(engine: Engine) -> Engine:
    """Everything is up and healthy."""
    engine.compose("up", "-d", timeout=300.0)
    healthy = dict.fromkeys(SERVERS, "healthy")
    try:
        wait_until("every server to be healthy", lambda: engine.health() == healthy, 150.0, every=0.5)
    except LabError as error:
        raise LabError(f"{error}: {engine.health()}; {engine.compose('logs', '--no-color', '--tail=20')}") from error
    return engine


def test_the_image_is_small_has_no_build_tools_and_runs_as_nobody_in_particular(engine: Engine) -> None:
    assert engine.image(IMAGE)["Config"]["User"] == "65532:65532"
    sizes = {name: engine.image(name)["Size"] for name in (BASE, IMAGE)}
    assert sizes[IMAGE] - sizes[BASE] < 130 * MB
    script = "ls -d /opt/p2pdist/bin/* /opt/p2pdist/lib/*/*/* /build"
    listed = engine.run(["docker", "run", "--rm", "--network=none", IMAGE, "sh", "-c", f"{script} 2>&1 || true"])
    names = {line.rpartition("/")[2] for line in listed.splitlines()}
    assert {"p2pdist", "p2pdist-tracker", "aiohttp"} <= names
    assert not {"pip", "setuptools", "wheel", "hatchling", "pytest", "mypy"} & names
    assert "/build: No such file" in listed


def test_all_agents_get_a_new_image_and_the_registry_sends_it_once(fleet: Engine) -> None:
    said = fleet.run(["sh", str(COMPOSE / "try.sh")], timeout=300.0)  # its status says whether it was once
    assert said.count("5 digests proved\n") == 3, said


@pytest.mark.parametrize("service", SERVERS)
def test_no_container_can_write_to_its_root_or_has_a_capability(fleet: Engine, service: str) -> None:
    found = fleet.inspect(service)
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    status = fleet.inside(service, "cat /proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    if service != "registry":
        assert fields["Uid"].split()[0] != "0"
    with pytest.raises(LabError, match="Read-only file system"):
        fleet.inside(service, "touch /written")


def test_a_join_token_lies_where_agents_only_read_it_and_nobody_else(fleet: Engine) -> None:
    listed = fleet.inside("agent-1", "ls -ln /run/p2pdist/token")
    assert listed.startswith("-rw-------") and listed.split()[2] == "65532"
    with pytest.raises(LabError, match="Read-only file system"):
        fleet.inside("agent-1", "echo x >/run/p2pdist/token")
    with pytest.raises(LabError, match="No such file"):
        fleet.inside("agent-1", "ls /run/state")


def test_this_machine_reaches_a_mirror_and_p2pdist_status_answers(fleet: Engine) -> None:
    assert fleet.get("http://127.0.0.1:15051/v2/") == 200
    status = json.loads(fleet.inside("agent-1", "p2pdist status --json"))
    assert status["tracker"]["connected"] is True
    assert status["insecure"] is False


def test_a_tracker_that_is_killed_in_the_middle_of_a_rollout_fails_no_pull(fleet: Engine) -> None:
    before = fleet.reads()
    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(fleet.compose, "run", "--rm", "-T", "try", timeout=300.0)
        wait_until("the first reads", lambda: fleet.reads() > before, 60.0, every=0.1)
        fleet.compose("kill", "tracker-1")
        assert pulling.result().count("5 digests proved") == 3
