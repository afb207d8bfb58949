"""`p2pdist status`: what the agent on this machine is doing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pdist.admin import AdminClient
from p2pdist.cli.units import in_bytes
from p2pdist.config import load_agent


def status(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's configuration file.")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option("--socket", help="The agent's admin socket, if it isn't the default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, as the agent gives it.")] = False,
) -> None:
    """Show what the agent on this machine is doing."""
    path = socket if socket is not None else load_agent(config, os.environ).admin_socket
    answer = asyncio.run(_ask(path))
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        Console().print(status_table(answer))


async def _ask(path: Path) -> dict[str, Any]:
    async with AdminClient(path) as client:
        return await client.status()


def status_table(answer: Mapping[str, Any]) -> Table:
    """The answer as a table: a row for each value, sizes and times in units that people read."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    previous = ""
    for section, name, value in _rows(answer):
        table.add_row("" if section == previous else section, name, value)
        previous = section
    return table


def _rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for section, values in answer.items():
        if isinstance(values, Mapping):
            for name, value in values.items():
                yield section, name.replace("_", " "), _shown(name, value)
        else:
            yield section.replace("_", " "), "", _shown(section, values)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int) and (name.startswith("bytes") or name.endswith("bytes")):
        return in_bytes(value)
    if isinstance(value, float):
        return f"{value:.1f} s" if name.endswith("seconds") else f"{value:.2f}"
    if isinstance(value, list):
        return ", ".join(_shown("", item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(key, item)}" for key, item in value.items()) or "none"
    return str(value)
