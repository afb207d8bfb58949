"""The README shows what the programs really print and take, and CI runs its commands literally."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from p2pdist.cli import app
from p2pdist.cli.daemons import snippets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_commands_run_the_demo_and_the_second_all_tests():
    commands = re.findall(r"^<!-- ci: (\w+) -->\n```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in commands] == ["demo", "tests"]
    assert commands[0][1].splitlines()[-1] == ".venv/bin/p2pdist demo"
    assert commands[1][1].splitlines()[-1] == ".venv/bin/pytest"
    assert BLOCKS[0] == commands[0][1]


@pytest.mark.parametrize("snippet", snippets("127.0.0.1:5050", ["docker.io"]), ids=lambda snippet: snippet.daemon)
def test_what_goes_into_the_daemons_files_is_what_up_prints(snippet):
    assert snippet.text + "\n" in BLOCKS
    assert snippet.path in README


def test_every_command_of_the_program_that_the_readme_names_exists():
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"`(?:\.venv/bin/)?p2pdist ([a-z]+)", README)) <= known


def test_every_option_that_the_readme_names_exists():
    shown = "".join(
        CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for name in ("up", "agent", "demo", "status")
    )
    for option in set(re.findall(r"`(?:p2pdist [^`]*)?(--[a-z][a-z-]+)", README)) - {"--hosts-dir"}:
        assert option in shown


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("script", [".ci/run", "tests/system/packages.sh"])
def test_the_scripts_are_valid_shell(script):
    shell = "bash" if "bash" in (ROOT / script).read_text().split("\n")[0] else "sh"
    subprocess.run([shell, "-n", ROOT / script], check=True)


def test_ci_takes_its_commands_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "readme_block demo" in script and "readme_block tests" in script
    assert "pip install" not in script, "what the README installs is what is tested"
