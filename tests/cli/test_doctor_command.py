"""doctor: what it finds of a node and of its daemons, what it tells to do, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from support.fleet import Fleet, Node
from support.proxy import FakeProxy
from support.registry import FakeRegistry, Status, noise
from trust_commands_kit import config_file, kit, policy_file, sign, signed_by

from p2pdist.cli import main
from p2pdist.cli.bypass import Containerd, Dockerd, Ran, judge
from p2pdist.cli.checks import State
from p2pdist.config import AdminConfig, TrustConfig
from p2pdist.oci import Reference

NOWHERE = '[[registries]]\nname = "127.0.0.1:1"\n'
MIRROR = "http://127.0.0.1:5050"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The agents of these tests log into the same streams as the commands write to."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""

    def with_arguments(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["p2pdist", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return with_arguments


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return kit.new_key()


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A `docker` and a `ctr` that note what they are asked, and pull as the test says: `got` or `refused`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> {tmp_path}/asked
case "$*" in
  *pull*) exec {sys.executable} {tmp_path}/pull.py ;;
  *inspect*|*" ls "*) cat {tmp_path}/had; if [ "$1 $2" = "image inspect" ]; then grep -q sha256 {tmp_path}/had; fi ;;
esac
"""
    for name in ("docker", "ctr"):
        (directory / name).write_text(script)
        (directory / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")

    def pull(url: str | None, status: int, says: str, *, had: str | None = None) -> None:
        """The daemon asks `url` first, if any. `had`: what it says of the image before; by itself, that it is new."""
        (tmp_path / "had").write_text(had if had is not None else "")
        ask = "" if url is None else f"try: urllib.request.urlopen({url!r})\nexcept urllib.error.HTTPError: pass\n"
        (tmp_path / "pull.py").write_text(f"import sys, urllib.request\n{ask}print({says!r})\nsys.exit({status})\n")
        (tmp_path / "asked").write_text("")

    pull.asked = lambda: (tmp_path / "asked").read_text().splitlines()
    return pull


async def start(fleet: Fleet, directory: Path, key: ec.EllipticCurvePrivateKey, **trust: Any) -> tuple[Node, Path]:
    """An agent and the file of its configuration."""
    policy = policy_file(directory, {f"{fleet.registry.name}/app": signed_by(directory, key)})
    options = {"enforcement": "enforce", "policy_file": policy} | trust
    node = await fleet.start(trust=TrustConfig(**options), admin=AdminConfig(socket=directory / "s"))
    text = f'[trust]\nenforcement = "{options["enforcement"]}"\npolicy_file = "policy.json"\n[admin]\nsocket = "s"\n'
    text += f'[mirror]\nhost = "{node.config.mirror.host}"'
    path = config_file(directory, fleet.registry, text)
    path.write_text(path.read_text().replace('"data"', f'"{node.config.node.data_dir}"\nmax_store_bytes = "1MiB"'))
    return node, path


def by_check(out: str) -> dict[str, dict[str, str]]:
    return {one["check"]: one for one in json.loads(out)["checks"]}


async def test_doctor_finds_a_healthy_node_healthy(run, tmp_path, key):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        _, config = await start(fleet, tmp_path, key)
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
        assert status == 0, out
        found = by_check(out)
        name = f"registry {registry.name}"
        assert list(found) == ["configuration", "data directory", "agent", "mirror", name, "tracker", "policy"]
        assert {one["state"] for one in found.values()} == {"ok"}, out
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config)
        assert status == 0 and out.count("ok ") == 7


def test_doctor_without_an_agent_says_what_is_missing_and_what_to_do_and_status_1(run, tmp_path):
    (tmp_path / "agent.toml").write_text('[node]\ndata_dir = "none"\n[mirror]\nport = 1\n' + NOWHERE)
    status, out, _ = run("doctor", "--config", tmp_path / "agent.toml", "--json")
    found = by_check(out)
    assert status == 1
    for check in ("data directory", "agent", "mirror", "registry 127.0.0.1:1"):
        assert found[check]["state"] == "failed" and found[check]["remedy"], check
    assert found["tracker"]["state"] == "not checked"


async def test_doctor_says_by_which_proxy_a_registry_is_reached_and_when_it_is_not(run, tmp_path):
    config = tmp_path / "agent.toml"

    async def found(name: str, options: str) -> dict[str, str]:
        config.write_text(f'[node]\ndata_dir = "."\n[mirror]\nport = 1\n[[registries]]\nname = "{name}"\n{options}\n')
        _, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
        assert "secret" not in out
        return by_check(out)[f"registry {name}"]

    async with FakeRegistry() as registry, FakeProxy(login="u:secret-1") as proxy:
        way = f"through the proxy {proxy.url}"
        one = await found(registry.name, f'proxy = "{proxy.url_with("u:secret-1")}"')
        assert (one["state"], one["detail"]) == ("ok", f"{registry.url} answers {way}")
        one = await found(registry.name, f'proxy = "{proxy.url_with("u:secret-2")}"')
        assert one["state"] == "failed" and way in one["detail"] and "407" in one["detail"]
        assert "HTTPS_PROXY" in one["remedy"] and "[[registries]]" in one["remedy"]
        registry.fail(Status(502))
        one = await found(registry.name, "")
        assert one["state"] == "warning" and "answers 502" in one["detail"]
    one = await found(registry.name, "")
    assert one["state"] == "failed" and "no connection" in one["detail"] and "HTTPS_PROXY" in one["remedy"]
    one = await found(registry.name, f'proxy = "{proxy.url_with("u:secret-1")}"')
    assert one["state"] == "failed" and "no connection to the proxy" in one["detail"]


async def test_doctor_finds_that_the_agent_was_started_with_another_proxy_than_its_own_environment_has(
    run, tmp_path, key, monkeypatch
):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        node, config = await start(fleet, tmp_path, key)
        assert node.agent.status()["registries"] == [{"name": registry.name, "url": registry.url, "proxy": ""}]
        config.write_text(
            config.read_text().replace("[[registries]]\n", '[[registries]]\nproxy = "http://u:secret@p:1"\n')
        )
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
        one = by_check(out)[f"registry {registry.name}"]
        assert (status, one["state"]) == (1, "failed") and "secret" not in out
        assert (
            one["detail"]
            == "the running agent goes without a proxy; from here it would be through the proxy http://p:1"
        )

        config.write_text(config.read_text().replace("[[registries]]\n", '[[registries]]\nca_file = "none.pem"\n'))
        _, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
        one = by_check(out)["registries"]
        assert one["state"] == "failed" and "none.pem" in one["detail"] and "ca_file" in one["remedy"]


def test_doctor_says_in_words_why_nothing_answers(run, tmp_path):
    (tmp_path / "agent.toml").write_text('[node]\ndata_dir = "."\n[mirror]\nport = 1\n' + NOWHERE)
    _, out, _ = run("doctor", "--config", tmp_path / "agent.toml", "--json")
    mirror = by_check(out)["mirror"]["detail"]
    assert mirror.startswith("http://127.0.0.1:1 does not answer: ") and "refused" in mirror.lower()
    assert "ssl:" not in mirror and "[" not in mirror


def test_doctor_with_a_wrong_configuration_names_the_key(run, tmp_path):
    (tmp_path / "agent.toml").write_text("[mirror]\nprot = 1\n")
    status, out, _ = run("doctor", "--config", tmp_path / "agent.toml")
    assert status == 1 and "mirror.prot" in out and "what to do:" in out


async def test_doctor_finds_that_another_program_has_the_mirrors_port(run, tmp_path):
    async with FakeRegistry() as registry:
        (tmp_path / "agent.toml").write_text(f'[node]\ndata_dir = "."\n[mirror]\nport = {registry.port}\n{NOWHERE}')
        _, out, _ = await asyncio.to_thread(run, "doctor", "--config", tmp_path / "agent.toml", "--json")
        mirror = by_check(out)["mirror"]
        assert (mirror["state"], "is no p2pdist" in mirror["detail"]) == ("failed", True)
        assert "mirror.port" in mirror["remedy"]


async def test_doctor_finds_a_tracker_that_is_gone(run, tmp_path, key):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        node, config = await start(fleet, tmp_path, key)
        await fleet.stop_tracker()
        async with asyncio.timeout(20):
            while node.agent.status()["tracker"]["connected"]:
                await asyncio.sleep(0.01)
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
        tracker = by_check(out)["tracker"]
        assert (status, tracker["state"]) == (1, "failed") and "tracker.urls" in tracker["remedy"]


async def test_doctor_finds_a_policy_that_is_wrong_or_not_the_one_in_force(run, tmp_path, key):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        _, config = await start(fleet, tmp_path, key)

        async def policy() -> dict[str, str]:
            _, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, "--json")
            return by_check(out)["policy"]

        right = (tmp_path / "policy.json").read_text()
        (tmp_path / "policy.json").write_text("{")
        found = await policy()
        assert found["state"] == "failed" and "the policy before it" in found["remedy"]

        (tmp_path / "policy.json").write_text(right.replace('"reject"', '"insecureAcceptAnything"'))
        found = await policy()
        assert found["state"] == "warning" and "passes unchecked" in found["detail"]

        (tmp_path / "other.json").write_text(right)
        text = config.read_text()
        config.write_text(text.replace("policy.json", "other.json"))
        found = await policy()
        assert (found["state"], found["remedy"]) == ("failed", "restart the agent")

        config.write_text(text.replace('"enforce"', '"off"'))
        found = await policy()
        assert (found["state"], found["remedy"]) == ("failed", "restart the agent"), "the file says off, it enforces"


NEW = {"docker": "Error: No such image: x", "containerd": ""}


@pytest.mark.parametrize(("daemon", "tool"), [("docker", "docker"), ("containerd", "ctr")])
async def test_doctor_reports_a_daemon_that_got_a_refused_image_and_removes_it(run, tmp_path, key, tools, daemon, tool):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_image("app/a", "1", [noise(2000)])
        node, config = await start(fleet, tmp_path, key)
        name = f"{registry.name}/app/a:1"
        tools(node.url + fleet.path("manifests", "1"), 0, "Status: Downloaded newer image", had=NEW[daemon])
        arguments = ("doctor", "--config", config, "--daemon", daemon, "--image", name)
        status, out, _ = await asyncio.to_thread(run, *arguments, "--json")
        found = by_check(out)["way round the agent"]
        assert (status, found["state"]) == (1, "failed"), out
        assert "after the agent had refused it" in found["detail"] and "nftables" in found["remedy"]
        has, pull, remove = tools.asked()
        assert has.startswith(tool) and " pull " in pull and re.search(r"\brm\b.*" + re.escape(name), remove)
        status, out, _ = await asyncio.to_thread(run, *arguments)
        assert "what to do:  dockerd asks" in out or "what to do:  put server" in out


@pytest.mark.parametrize(("daemon", "had"), [("docker", "sha256:00"), ("containerd", "registry/app/a:1")])
async def test_doctor_removes_no_image_that_the_daemon_had_before(run, tmp_path, key, tools, daemon, had):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_image("app/a", "1", [noise(2000)])
        node, config = await start(fleet, tmp_path, key)
        tools(node.url + fleet.path("manifests", "1"), 0, "Status: Image is up to date", had=had)
        arguments = ("--daemon", daemon, "--image", f"{registry.name}/app/a:1")
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, *arguments)
        assert status == 1 and "after the agent had refused it" in out
        assert len(tools.asked()) == 2 and not any(re.search(r"\brm\b", one) for one in tools.asked())


async def test_doctor_says_when_the_daemon_does_not_answer(run, tmp_path, key, tools):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_image("app/a", "1", [noise(2000)])
        _, config = await start(fleet, tmp_path, key)
        tools(None, 0, "", had="Cannot connect to the Docker daemon")
        arguments = ("--daemon", "docker", "--image", f"{registry.name}/app/a:1")
        status, out, _ = await asyncio.to_thread(run, "doctor", "--config", config, *arguments)
        assert status == 1 and "does not answer: Cannot connect" in out and len(tools.asked()) == 1


async def test_doctor_is_content_where_the_daemon_took_no_for_an_answer(run, tmp_path, key, tools):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_image("app/a", "1", [noise(2000)])
        node, config = await start(fleet, tmp_path, key)
        arguments = (
            "doctor",
            "--config",
            config,
            "--daemon",
            "docker",
            "--image",
            f"{registry.name}/app/a:1",
            "--json",
        )
        tools(node.url + fleet.path("manifests", "1"), 1, "denied: policy refuses it", had=NEW["docker"])
        status, out, _ = await asyncio.to_thread(run, *arguments)
        found = by_check(out)["way round the agent"]
        assert (status, found["state"]) == (0, "ok") and "denied: policy refuses it" in found["detail"]
        assert len(tools.asked()) == 2, "nothing is removed"

        tools(None, 1, "no such host", had=NEW["docker"])
        status, out, _ = await asyncio.to_thread(run, *arguments)
        found = by_check(out)["way round the agent"]
        assert (status, found["state"]) == (1, "failed"), "it failed for another reason: that proves nothing"
        assert "did not ask the agent" in found["detail"] and "no such host" in found["detail"]


async def test_doctor_concludes_nothing_from_an_image_that_the_policy_accepts_or_that_is_not_there(
    run, tmp_path, key, tools
):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        sign(registry, registry.add_image("app/a", "1", [noise(2000)]), key)
        _, config = await start(fleet, tmp_path, key)
        tools(None, 0, "")
        for name, why in ((f"{registry.name}/app/a:1", "accepts"), (f"{registry.name}/app/none:1", "404")):
            arguments = ("doctor", "--config", config, "--daemon", "docker", "--image", name, "--json")
            status, out, _ = await asyncio.to_thread(run, *arguments)
            found = by_check(out)["way round the agent"]
            assert (status, found["state"]) == (1, "failed")
            assert why in found["detail"] and "name one that" in found["remedy"]
        assert not tools.asked(), "the daemon is left alone"


async def test_doctor_with_warn_says_that_nothing_is_refused(run, tmp_path, key, tools):
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        _, config = await start(fleet, tmp_path, key, enforcement="warn")
        tools(None, 0, "")
        arguments = (
            "doctor",
            "--config",
            config,
            "--daemon",
            "docker",
            "--image",
            f"{registry.name}/app/a:1",
            "--json",
        )
        status, out, _ = await asyncio.to_thread(run, *arguments)
        found = by_check(out)
        assert status == 0
        assert found["way round the agent"]["state"] == "not checked"
        assert found["policy"]["state"] == "warning" and "everything passes" in found["policy"]["detail"]


@pytest.mark.parametrize("arguments", [["--daemon", "docker"], ["--image", "app:1"], ["--daemon", "podman"]])
def test_doctor_with_half_a_question_is_status_2(run, arguments):
    assert run("doctor", *arguments)[0] == 2


def test_a_daemon_that_goes_on_trying_has_not_taken_no_for_an_answer():
    found = judge(Dockerd(), Reference.parse("app:1"), Ran(None, ""), True, MIRROR)
    assert found.state is State.FAILED and "still trying" in found.detail


@pytest.mark.parametrize(
    ("daemon", "image", "what"),
    [
        (Dockerd(), "app:1", "Docker Hub itself after any refusal"),
        (Dockerd(), "ghcr.io/app:1", "ghcr.io itself for all else"),
        (Containerd(Path("/etc/containerd/certs.d")), "app:1", f'server = "{MIRROR}"'),
    ],
)
def test_the_remedy_is_the_daemons_own(daemon, image, what):
    found = judge(daemon, Reference.parse(image), Ran(0, ""), False, MIRROR)
    assert what in found.remedy and "nftables" in found.remedy
    assert "without asking the agent" in found.detail
