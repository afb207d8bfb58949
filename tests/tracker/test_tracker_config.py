"""The tracker's settings, its key, and the program."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import stat
import sys
import tomllib
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from p2pdist import __version__
from p2pdist.errors import ConfigError, StorageError
from tracker.__main__ import cli
from tracker.config import TrackerSettings, example, load, options
from tracker.keys import cluster_key


def written(directory: Path, text: str) -> Path:
    path = directory / "tracker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_said_means_the_defaults() -> None:
    assert load(None, {}) == TrackerSettings()


def test_the_file_overrides_defaults_and_the_environment_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'port = 1\nhost = "::1"\n[swarm]\ndegree = 5\nalone_after = 1\n[content]\ntag_refresh = 2.5\n'
    )
    settings = load(path, {"P2PDIST_TRACKER_PORT": "2", "P2PDIST_TRACKER_SWARM_CREDITS": "3", "HOME": "/"})
    assert (settings.host, settings.port) == ("::1", 2)
    assert (settings.swarm.degree, settings.swarm.credits, settings.swarm.alone_after) == (5, 3, 1.0)
    assert settings.content.tag_refresh == 2.5 and settings.bans.accusers == 3


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("prot = 1", "port"), ("[swarm]\ndegre = 5", "swarm.degree"), ("[swarn]\ndegree = 5", "swarm.degree")],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, text: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        load(written(tmp_path, text), {})


def test_an_unknown_variable_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'P2PDIST_TRACKER_SWARM_DEGREE'"):
        load(None, {"P2PDIST_TRACKER_SWARM_DEGREES": "4"})


def test_what_kubernetes_sets_for_a_service_of_that_name_is_not_ours() -> None:
    injected = {
        "P2PDIST_TRACKER_SERVICE_HOST": "10.0.0.1",
        "P2PDIST_TRACKER_SERVICE_PORT": "7070",
        "P2PDIST_TRACKER_SERVICE_PORT_HTTP": "7070",
        "P2PDIST_TRACKER_PORT": "tcp://10.0.0.1:7070",
        "P2PDIST_TRACKER_PORT_7070_TCP": "tcp://10.0.0.1:7070",
        "P2PDIST_TRACKER_PORT_7070_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, injected) == TrackerSettings()


@pytest.mark.parametrize(
    "text",
    [
        'port = "x"',
        "port = -1",
        "session_timeout = nan",
        "session_timeout = inf",
        "host = 3",
        "swarm = 3",
        "port = 1.5",
        "= 3",
    ],
)
def test_a_wrong_value_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="tracker"):
        load(written(tmp_path, text), {})


@pytest.mark.parametrize(
    "text",
    ["port = 70000", "[swarm]\ncredits = 0", 'log_level = "loud"', "[swarm]\nrun = 0", "[content]\nfetch_timeout = 0"],
)
def test_a_value_with_which_nothing_would_work_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="tracker"):
        load(written(tmp_path, text), {})


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        load(tmp_path / "nothing.toml", {})


def test_the_example_has_every_option_at_its_default(tmp_path: Path) -> None:
    text = example()
    tables = {setting.table for setting in options()} - {""}
    assert tomllib.loads(text) == {table: {} for table in tables}
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in text.splitlines()
        if not line.startswith("# ") or _assigns(line)
    )
    assert load(written(tmp_path, uncommented), {}) == TrackerSettings()
    assert all(setting.doc and setting.variable in text for setting in options())
    fields = {field.name for field in dataclasses.fields(TrackerSettings)}
    assert fields == {setting.name for setting in options() if not setting.table} | tables


def _assigns(line: str) -> bool:
    return any(line.startswith(f"# {setting.name} = ") for setting in options())


def test_the_cluster_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    first = cluster_key(str(directory)).private_bytes_raw()
    assert cluster_key(str(directory)).private_bytes_raw() == first
    (path,) = directory.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_without_a_directory_every_start_has_a_key_of_its_own() -> None:
    assert cluster_key("").private_bytes_raw() != cluster_key("").private_bytes_raw()


def test_a_broken_key_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    cluster_key(str(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"short")
    with pytest.raises(StorageError, match="restore it"):
        cluster_key(str(tmp_path))


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        cluster_key(str(tmp_path / "file" / "data"))


def test_help_version_and_example_are_printed() -> None:
    runner = CliRunner()
    assert "upstream" in runner.invoke(cli, ["--help"]).stdout
    assert runner.invoke(cli, ["--version"]).stdout == f"{__version__}\n"
    assert runner.invoke(cli, ["--example"]).stdout == example()


def test_a_bad_configuration_ends_the_program_with_a_clear_word(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--config", str(written(tmp_path, "prot = 1"))])
    assert result.exit_code == 1
    assert "did you mean 'port'" in result.stderr and "Traceback" not in result.stderr


async def test_the_program_runs_and_sigterm_stops_it_cleanly(tmp_path: Path) -> None:
    config = written(tmp_path, f'port = 0\ninsecure = true\ndata_directory = "{tmp_path / "data"}"\n')
    environment = {key: value for key, value in os.environ.items() if not key.startswith("P2PDIST_")}
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tracker", "--config", str(config),
        stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        line = (await asyncio.wait_for(program.stderr.readline(), 30.0)).decode()
        url = next(word for word in line.split() if word.startswith("url=")).removeprefix("url=")
        async with aiohttp.ClientSession() as http, http.get(url + "/healthz") as answer:
            assert (await answer.json())["status"] == "ok"
        program.send_signal(signal.SIGTERM)
        _, rest = await asyncio.wait_for(program.communicate(), 10.0)
        assert program.returncode == 0 and b"Traceback" not in rest
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert (tmp_path / "data" / "cluster.key").exists()
