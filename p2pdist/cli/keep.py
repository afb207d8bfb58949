"""`p2pdist keep`: what the agent on this machine never evicts."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from p2pdist.admin import AdminClient
from p2pdist.cli.units import in_bytes
from p2pdist.config import load_agent

T = TypeVar("T")
Config = Annotated[
    Path | None, typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's configuration file.")
]
Socket = Annotated[Path | None, typer.Option("--socket", help="The agent's admin socket, if it isn't the default.")]
Images = Annotated[
    str, typer.Argument(metavar="IMAGES", help="An image, a repository, a digest or a pattern: ghcr.io/acme/*:stable")
]

keep = typer.Typer(
    no_args_is_help=True,
    help="What the agent on this machine never evicts, besides store.keep of its configuration. A tag is kept as what "
    "it names: when it moves, what it named before may go. Nothing is pulled for it.",
)


@keep.command("add")
def add(images: Images, config: Config = None, socket: Socket = None) -> None:
    """Never evict these images from now on."""
    typer.echo(_run(lambda client: client.keep(images), config, socket))


@keep.command("list")
def list_kept(
    config: Config = None,
    socket: Socket = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, as the agent gives it.")] = False,
) -> None:
    """What is kept, who said so, and how much of it is here."""
    kept = _run(lambda client: client.kept(), config, socket)
    if as_json:
        typer.echo(json.dumps(kept))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("images", "by", "until", "blobs", "size"):
        table.add_column(heading, overflow="fold")
    for one in kept:
        until = datetime.fromtimestamp(one["until"], UTC).strftime("%Y-%m-%d %H:%MZ") if one["until"] else "for ever"
        table.add_row(
            one["pattern"].replace("[", r"\["), one["origin"], until, str(one["blobs"]), in_bytes(one["bytes"])
        )
    Console().print(table)


@keep.command("remove")
def remove(images: Images, config: Config = None, socket: Socket = None) -> None:
    """Keep them no longer: they go when room is needed, the least recently used first."""
    typer.echo(_run(lambda client: client.keep(images, remove=True), config, socket))


def _run(work: Callable[[AdminClient], Awaitable[T]], config: Path | None, socket: Path | None) -> T:
    path = socket if socket is not None else load_agent(config, os.environ).admin_socket

    async def run() -> T:
        async with AdminClient(path) as client:
            return await work(client)

    return asyncio.run(run())
