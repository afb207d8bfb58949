"""verify and policy check: what they say, to people and to scripts, and with which exit status."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from support.registry import FakeRegistry, noise
from trust_commands_kit import config_file, kit, policy_file, sign, signed_by

from p2pdist.cli import main
from p2pdist.cli.lines import Line, show


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


# --- verify -------------------------------------------------------------------------------------------------------


async def test_verify_accepts_a_signed_image_with_status_0_and_says_by_what(run, tmp_path, key):
    async with FakeRegistry() as registry:
        sign(registry, registry.add_image("app/a", "1", [noise(2000)]), kit.new_key(), key)
        policy = policy_file(tmp_path, {f"{registry.name}/app": signed_by(tmp_path, key)})
        config = config_file(tmp_path, registry, f'[trust]\nenforcement = "enforce"\npolicy_file = "{policy.name}"')
        status, out, err = await asyncio.to_thread(run, "verify", f"{registry.name}/app/a:1", "--config", config)
        assert (status, err) == (0, "")
        assert out.startswith(f"accepted  {registry.name}/app/a:1\n")
        assert f"scope  {registry.name}/app, which" in out
        assert len(re.findall(r"^ +does not count  .*layer", out, re.MULTILINE)) == 1, "the other's signature"
        assert re.search(r"^ +counts  .*simple.* by .*team\.pub", out, re.MULTILINE)
        assert not registry.requests(r"blobs/" + re.escape(str(image_layer(registry)))), "no layer is read"


def image_layer(registry: FakeRegistry) -> str:
    raw = registry.manifests["app/a"]["1"][0]
    return str(json.loads(raw)["layers"][0]["digest"])


async def test_verify_refuses_with_status_1_and_names_every_signature_and_its_reason(run, tmp_path, key):
    async with FakeRegistry() as registry:
        image = registry.add_image("app/a", "1", [noise(2000)])
        sign(registry, image, kit.new_key(), kit.new_key())
        policy = policy_file(tmp_path, {f"{registry.name}/app": signed_by(tmp_path, key)})
        arguments = ("verify", f"{registry.name}/app/a:1", "--policy", policy, "--config")
        config = config_file(tmp_path, registry)
        status, out, _ = await asyncio.to_thread(run, *arguments, config)
        assert status == 1
        assert out.startswith("refused  ") and out.count("does not count") == 2
        status, out, _ = await asyncio.to_thread(run, *arguments, config, "--json")
        answer = json.loads(out)
        assert (status, answer["accepted"]) == (1, False)
        assert (answer["digest"], answer["scope"]) == (str(image.digest), f"{registry.name}/app")
        (requirement,) = answer["requirements"]
        assert [one["accepted"] for one in requirement["candidates"]] == [False, False]
        assert all(one["reason"] for one in requirement["candidates"])


async def test_verify_says_when_no_signature_was_found(run, tmp_path, key):
    async with FakeRegistry() as registry:
        registry.add_image("app/a", "1", [noise(2000)])
        policy = policy_file(tmp_path, {f"{registry.name}/app": signed_by(tmp_path, key)})
        config = config_file(tmp_path, registry)
        arguments = ("verify", f"{registry.name}/app/a:1", "--policy", policy, "--config", config)
        status, out, _ = await asyncio.to_thread(run, *arguments)
        assert status == 1 and "no signature was found" in out


async def test_verify_of_a_platforms_image_says_to_pull_the_signed_index(run, tmp_path, key):
    async with FakeRegistry() as registry:
        image = registry.add_image("app/a", None, [noise(2000)])
        policy = policy_file(tmp_path, {f"{registry.name}/app": signed_by(tmp_path, key)})
        arguments = ("--policy", policy, "--config", config_file(tmp_path, registry))
        status, out, _ = await asyncio.to_thread(run, "verify", f"{registry.name}/app/a@{image.digest}", *arguments)
        assert status == 1 and "if it belongs to a signed index, pull that" in out


def test_what_a_registry_writes_reaches_no_terminal_as_control_or_markup(capsys):
    show([Line("\x1b]0;owned\x07[red]x\nok  fine", "[bold]head\r", "red", 2)])
    assert capsys.readouterr().out == "  [bold]head?  ?]0;owned?[red]x?ok  fine\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["app:1"], "--policy"),
        (["App:1", "--policy", "POLICY"], "App"),
        (["elsewhere.example/app:1", "--policy", "POLICY"], "P2PDIST_REGISTRIES=elsewhere.example"),
        (["app:1", "--policy", "none.json"], "none.json"),
        (["app:1", "--config", "none.toml"], "none.toml"),
    ],
    ids=["no policy", "no reference", "registry not configured", "no policy file", "no configuration"],
)
def test_verify_that_cannot_begin_is_one_line_that_says_what_to_do_and_status_2(run, tmp_path, arguments, why):
    policy = policy_file(tmp_path, {})
    status, out, err = run("verify", *(str(policy) if one == "POLICY" else one for one in arguments))
    assert (status, out) == (2, "")
    assert why in err and err.count("\n") == 1


async def test_verify_of_an_image_that_is_not_there_is_one_line_and_status_1(run, tmp_path):
    async with FakeRegistry() as registry:
        arguments = ("--policy", policy_file(tmp_path, {}), "--config", config_file(tmp_path, registry))
        status, out, err = await asyncio.to_thread(run, "verify", f"{registry.name}/app/none:1", *arguments)
    assert (status, out) == (1, "")
    assert "app/none" in err and err.count("\n") == 1


# --- policy check -------------------------------------------------------------------------------------------------


def test_policy_check_lists_every_scope_and_what_is_open(run, tmp_path, key):
    scopes = {"registry.example/app": signed_by(tmp_path, key), "docker.io": [{"type": "insecureAcceptAnything"}]}
    status, out, _ = run("policy", "check", policy_file(tmp_path, scopes))
    assert status == 0
    assert "registry.example/app  requires all of:" in out and "team.pub" in out
    assert "docker.io  anything passes, unsigned too" in out
    assert "default  nothing passes" in out


@pytest.mark.parametrize(
    ("reference", "considered", "applies"),
    [
        ("registry.example/app/a:1", 3, "registry.example/app"),
        ("registry.example/other", 3, "registry.example"),
        ("sub.example/app:1", 4, "*.example"),
        ("alpine", 6, "docker"),
        ("registry.example/app/a:pinned", 1, "registry.example/app/a:pinned"),
    ],
)
def test_policy_check_says_which_rule_applies_and_which_could_have(run, tmp_path, key, reference, considered, applies):
    names = ["registry.example/app", "registry.example", "*.example", "", "registry.example/app/a:pinned"]
    path = policy_file(tmp_path, dict.fromkeys(names, signed_by(tmp_path, key)))
    status, out, _ = run("policy", "check", path, reference, "--json")
    answer = json.loads(out)["applies"]
    assert (status, answer["scope"]["scope"]) == (0, applies)
    assert answer["considered"][-1] == applies
    assert len(answer["considered"]) == considered
    status, out, _ = run("policy", "check", path, reference)
    assert status == 0 and f"falls under the scope {applies}\n" in out
    assert out.count("no rule for") == len(answer["considered"]) - 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"default": [{"type": "accept"}]}', "accept"),
        ('{"default": [{"type": "reject"}], "defualt": []}', "defualt"),
        ('{"default": [{"type": "sigstoreSigned", "keyPath": "none.pub"}]}', "none.pub"),
        ("{", "policy.json"),
    ],
)
def test_policy_check_of_a_wrong_file_is_one_line_that_says_where_and_status_2(run, tmp_path, text, why):
    (tmp_path / "policy.json").write_text(text)
    status, out, err = run("policy", "check", tmp_path / "policy.json")
    assert (status, out) == (2, "")
    assert why in err and err.count("\n") == 1
