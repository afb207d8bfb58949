"""The example file and the reference page say exactly what the options' declarations say, in both directions."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

from p2pdist.config import AgentConfig, load_agent
from p2pdist.config.agent import section_types
from p2pdist.config.reference import EXAMPLE, PAGE, example, page_with_tables

ROOT = Path(__file__).parents[2]


def uncommented() -> str:
    return re.sub(r"^#(?! )", "", (ROOT / EXAMPLE).read_text(), flags=re.MULTILINE)


def test_the_example_file_is_what_the_declarations_make():
    assert (ROOT / EXAMPLE).read_text() == example(), "run python -m p2pdist.config.reference"


def test_the_reference_page_is_what_the_declarations_make():
    page = (ROOT / PAGE).read_text()
    assert page == page_with_tables(page), "run python -m p2pdist.config.reference"


def test_every_option_is_in_the_example_and_nothing_else():
    tables = tomllib.loads(uncommented())
    shown = {(name, key) for name, table in tables.items() for key in (table[0] if name == "registries" else table)}
    declared = {(name, field.name) for name, kind in section_types().items() for field in dataclasses.fields(kind)}
    assert shown == declared


def test_every_section_of_the_configuration_is_declared():
    *sections, proxies = (field.name for field in dataclasses.fields(AgentConfig))
    assert sections == list(section_types()) and proxies == "proxies", "variables that are not ours alone"


def test_the_example_with_every_option_taken_in_is_the_defaults(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(uncommented())
    config, defaults = load_agent(file, {}), AgentConfig()
    node = dataclasses.replace(config.node, name=defaults.node.name, data_dir=defaults.node.data_dir)
    assert dataclasses.replace(config, node=node) == defaults


def test_the_example_as_it_is_changes_nothing():
    assert load_agent(ROOT / EXAMPLE, {}) == AgentConfig()
