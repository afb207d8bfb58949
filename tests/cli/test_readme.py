"""The README shows what the programs really print and take, and CI runs its commands literally."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer

from p2pdist.cli import app
from p2pdist.cli.daemons import snippets
from tracker.__main__ import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PROGRAMS = {"p2pdist": typer.main.get_command(app), "p2pdist-tracker": typer.main.get_command(cli)}


def test_the_first_commands_run_the_demo_and_the_second_all_tests():
    commands = re.findall(r"^<!-- ci: (\w+) -->\n```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in commands] == ["demo", "tests"]
    assert commands[0][1].splitlines()[-1] == ".venv/bin/p2pdist demo"
    program, *options = commands[1][1].splitlines()[-1].split()
    assert program == ".venv/bin/pytest"
    assert options == ["-n", "2", "--dist", "loadgroup"], "all tests: no path, nothing deselected"
    assert BLOCKS[0] == commands[0][1]


@pytest.mark.parametrize("snippet", snippets("127.0.0.1:5050", ["docker.io"]), ids=lambda snippet: snippet.daemon)
def test_what_goes_into_the_daemons_files_is_what_up_prints(snippet):
    assert snippet.text + "\n" in BLOCKS
    assert snippet.path in README


def test_every_command_that_the_readme_names_exists_and_takes_the_options_it_shows():
    shown = re.findall(r"`(?:\.venv/bin/)?(p2pdist(?:-tracker)?) ([^`]+)`", README)
    assert len(shown) > 5
    for program, line in shown:
        command, words = PROGRAMS[program], line.split()
        while words and hasattr(command, "commands") and words[0][0].islower():
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        assert {word for word in words if word.startswith("--")} <= options(command) | {"--help"}, line


def test_every_option_that_the_readme_names_by_itself_exists():
    known = set().union(*map(options, PROGRAMS.values()))
    assert set(re.findall(r"`(--[a-z][a-z-]+)", README)) - {"--hosts-dir"} <= known  # that one is ctr's


def options(command):
    """What it takes, or any of its own commands does."""
    below = [options(inner) for inner in getattr(command, "commands", {}).values()]
    return {option for one in command.params for option in one.opts}.union(*below)


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
