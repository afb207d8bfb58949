"""Every failure is one clear line on standard error and an exit status that scripts can tell apart."""

from __future__ import annotations

import asyncio
import json

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from p2pdist.admin import AdminServer
from p2pdist.cli import main
from p2pdist.cli.status import status_table
from p2pdist.cli.units import in_time

STATUS = {
    "version": "0.1.0",
    "node": {"name": "a", "uptime_seconds": 3.25},
    "transfer": {"bytes_from_upstream": 64 * 1024**2, "bytes_from_peers": 0, "flights": 2},
    "tracker": {"connected": True, "url": None},
    "registries": ["docker.io", "ghcr.io"],
    "membership": {"member": True, "certificate_seconds": 86_396.2, "problem": ""},
    "transfers": [
        {"digest": "sha256:" + "a" * 64, "size": 3 * 1024**2, "proved": 2, "from_upstream": 131_072, "from_peers": []},
        {"digest": "sha256:b", "size": 512, "proved": 0, "from_upstream": 0, "from_peers": [{"engine": "mesh"}]},
    ],
}


@pytest.fixture
def run(monkeypatch, capsys):
    def with_arguments(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["p2pdist", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return with_arguments


def test_version_says_version_and_protocol(run):
    status, out, _ = run("version")
    assert status == 0
    assert out.startswith("p2pdist 0.") and "protocol 1" in out


def test_a_wrong_configuration_is_one_line_and_status_2(run, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("[mirror]\nprot = 1")
    status, out, err = run("agent", "--config", file)
    assert (status, out) == (2, "")
    assert err == f'p2pdist: {file}: unknown key "mirror.prot"; did you mean "mirror.port"?\n'


def test_minus_h_helps_everywhere(run):
    for words in ((), ("status",), ("keep", "add")):
        status, out, _ = run(*words, "-h")
        assert status == 0 and "Usage: p2pdist" in out


def test_an_unknown_option_is_status_2(run):
    assert run("status", "--jsn")[0] == 2


def test_an_agent_that_is_not_there_is_one_line_that_says_what_to_do_and_status_1(run, tmp_path):
    status, out, err = run("status", "--socket", tmp_path / "none.sock")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1 and "p2pdist up" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--size", "huge"], "--size"),
        (["--size", "1KiB"], "8KiB"),
        (["--kill", "8"], "leaves none"),
        (["--size", "1000TiB"], "TMPDIR"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_before_anything_starts(run, arguments, why):
    status, _, err = run("demo", *arguments)
    assert status == 2
    assert why in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--join", "host:7070"], "--join"),
        (["--registry", "https://ghcr.io"], "--registry"),
        (["--address", "a b"], "--address"),
        (["--data-dir", "/" + "d" * 120], "socket"),
    ],
)
def test_up_names_the_option_that_cannot_be(run, arguments, why):
    status, _, err = run("up", *arguments)
    assert status == 2
    assert why in err


def test_status_has_a_line_for_each_transfer():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # closed below
    with console.file:
        console.print(status_table(STATUS))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "transfers sha256:aaaaaaaaaaaa size 3.0 MiB, proved 2, from upstream 128.0 KiB" in lines
    assert "sha256:b size 512 B, proved 0, from upstream 0 B, from peers engine mesh" in lines
    assert "certificate 1 d 0 h" in lines and "problem none" in lines


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (3.25, "3.2 s"),
        (119.9, "119.9 s"),
        (150, "2 min"),
        (86_396.2, "1 d 0 h"),
        (86_000, "23 h 53 min"),
        (-7200, "-2 h 0 min"),
    ],
)
def test_times_are_shown_in_the_two_largest_units(seconds, shown):
    assert in_time(seconds) == shown


async def test_status_json_is_what_the_agent_said(run, tmp_path):
    async with AdminServer(tmp_path / "s", lambda: STATUS, CollectorRegistry()):
        status, out, _ = await asyncio.to_thread(run, "status", "--json", "--socket", tmp_path / "s")
    assert status == 0
    assert json.loads(out) == STATUS


async def test_status_finds_the_socket_by_the_agents_configuration(run, tmp_path):
    (tmp_path / "agent.toml").write_text('[node]\ndata_dir = "."')
    async with AdminServer(tmp_path / "admin.sock", lambda: STATUS, CollectorRegistry()):
        status, out, _ = await asyncio.to_thread(run, "status", "--config", tmp_path / "agent.toml")
    assert status == 0
    assert "docker.io" in out


def test_status_for_people_has_units():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # closed below
    with console.file:
        console.print(status_table(STATUS))
    text = console.export_text()
    for line in ("uptime", "3.2 s", "64.0 MiB", "connected", "yes", "docker.io, ghcr.io", "url", "none"):
        assert line in text
