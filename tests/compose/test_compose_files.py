"""What the image is built from is pinned and small, and the compose file closes what can be closed. Without Docker."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from p2pdist.config import AgentConfig, load_agent
from tracker.config import load as load_tracker

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
ENTRY = re.compile(r"^([a-z0-9][a-z0-9-]*)==([^ ;]+).*?((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", re.MULTILINE)
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
OURS = [name for name in FILE["services"] if name not in {"registry", "redis", "try"}]


def lock(path: Path) -> dict[str, tuple[str, frozenset[str]]]:
    text = path.read_text()
    found = ENTRY.findall(text)
    assert ENTRY.sub("", text).strip() == "", f"{path.name} has something that isn't a pinned entry with its hashes"
    return {name: (version, frozenset(re.findall(r"[0-9a-f]{64}", hashes))) for name, version, hashes in found}


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_the_image_has_what_the_projects_lock_has_by_version_and_hash(name: str) -> None:
    whole = lock(ROOT / "requirements.lock")
    for package, pinned in lock(COMPOSE / name).items():
        assert pinned == whole[package], f"{package}: make compose/{name} anew, compose/README.md says how"


def test_every_dependency_of_the_programs_is_in_the_images_lock_and_no_test_tool() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = lock(COMPOSE / "requirements.lock")
    assert {re.match(r"[A-Za-z0-9-]+", one)[0] for one in project["dependencies"]} <= set(pinned)
    assert not {"pytest", "ruff", "mypy", "hypothesis", "hatchling", "kubernetes-validate"} & set(pinned)


def test_the_build_context_has_nothing_but_what_the_dockerfile_copies() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out but what is named"
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    allowed = {line[1:] for line in rules if line.startswith("!")}
    assert {source.replace("wheel[s]", "wheels") for source in sources} == (
        allowed - {"compose/*.lock"} | {"compose/requirements.lock", "compose/build.lock"}
    )


def test_try_sh_is_posix_shell() -> None:
    assert (COMPOSE / "try.sh").read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(COMPOSE / "try.sh")], check=True)


@pytest.mark.parametrize("name", FILE["services"])
def test_every_service_has_a_read_only_root_no_capabilities_and_no_way_to_get_any(name: str) -> None:
    service = FILE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "devices", "pid", "ipc"} & set(service)
    for volume in service.get("volumes", []):
        assert volume.startswith("./try.py:") or volume.split(":")[0] in FILE["volumes"], "nothing of the host"


def test_every_server_has_a_health_check() -> None:
    once = {"secrets", "token", "try"}
    assert {name for name in FILE["services"] if "healthcheck" not in FILE["services"][name]} == once


def test_ports_lead_to_this_machines_loopback_only_and_to_the_mirrors_port() -> None:
    mirror = AgentConfig().mirror.port
    for name, service in FILE["services"].items():
        for port in service.get("ports", []):
            assert re.fullmatch(rf"127\.0\.0\.1:\d+:{mirror}", port), name


def test_agents_see_neither_the_authority_nor_the_state_and_redis_only_trackers() -> None:
    for name, service in FILE["services"].items():
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        if name.startswith("agent"):
            assert volumes == {name, "token"}
            assert service["networks"] == ["fleet"]
        elif "state" in volumes:
            assert name in {"redis", "secrets", "token", "tracker-1", "tracker-2"}
    assert FILE["networks"]["state"] == {"internal": True}
    assert FILE["services"]["redis"]["networks"] == ["state"]


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_what_the_programs_know(name: str) -> None:
    environment = FILE["services"][name].get("environment", {})
    if name.startswith("agent"):
        config = load_agent(None, environment)
        assert not config.cluster.insecure
        assert config.node.name == name
        assert config.mirror.names == (name,), "as try.py calls it"
    elif environment:
        assert not load_tracker(None, environment).insecure


def test_agents_know_every_tracker_at_the_port_where_trackers_listen() -> None:
    environment = FILE["services"]["agent-1"]["environment"]
    trackers = [name for name in FILE["services"] if name.startswith("tracker")]
    settings = load_tracker(None, FILE["services"][trackers[0]]["environment"])
    urls = load_agent(None, environment).tracker.urls
    assert list(urls) == [f"https://{name}:{settings.port}" for name in trackers]


def test_a_stopping_agent_gets_the_time_that_it_allows_itself() -> None:
    grace = float(FILE["services"]["agent-1"]["stop_grace_period"].removesuffix("s"))
    assert grace > AgentConfig().node.shutdown_seconds
