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
from p2pdist.cli.units import in_bytes, in_time
from p2pdist.config import load_agent

_SIZES = frozenset({"size", "from_upstream"})  # bytes, whatever they are called


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
                yield section, name.removesuffix("_seconds").replace("_", " "), _shown(name, value)
        elif isinstance(values, list) and values and all(isinstance(item, Mapping) for item in values):
            for item in values:
                (_, first), *rest = item.items()
                yield (
                    section,
                    _short(_shown("", first)),
                    ", ".join(_with_name(*one) for one in rest if one[1] not in ("", [])),
                )
        else:
            yield section.removesuffix("_seconds").replace("_", " "), "", _shown(section, values)


def _short(text: str) -> str:
    """A digest as far as people compare them; all of it is in --json."""
    algorithm, colon, encoded = text.partition(":")
    return f"{algorithm}:{encoded[:12]}" if colon and len(encoded) >= 64 else text


def _with_name(name: str, value: Any) -> str:
    return f"{name.replace('_', ' ')} {_shown(name, value)}"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int) and (name in _SIZES or name.startswith("bytes") or name.endswith("bytes")):
        return in_bytes(value)
    if isinstance(value, float):
        return in_time(value) if name.endswith("seconds") else f"{value:.2f}"
    if isinstance(value, list):
        return ", ".join(_shown("", item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(_with_name(*one) for one in value.items()) or "none"
    return str(value) or "none"
