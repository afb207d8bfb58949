"""`p2pdist-tracker` and `python -m tracker`: one tracker in the foreground."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from p2pdist import __version__
from p2pdist.errors import P2pdistError
from tracker.app import serve
from tracker.commands import bans, token
from tracker.config import TrackerSettings, example, load
from tracker.operators import admin, deny

cli = typer.Typer(
    add_completion=False, rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]}
)
cli.add_typer(token, name="token")
cli.add_typer(bans, name="bans")
cli.add_typer(deny, name="deny")
cli.add_typer(admin, name="admin")


@cli.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see --example.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides the file.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for any; overrides the file.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Directory of the cluster key; overrides the file.")] = None,
    print_example: Annotated[bool, typer.Option("--example", help="Print a configuration with every option.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run a p2pdist tracker: it tells agents who else wants or has a blob, and which of them reads what from upstream.

    Every option of the file can be set by an environment variable, too: `P2PDIST_TRACKER_PORT`,
    `P2PDIST_TRACKER_SWARM_DEGREE`... Stops on SIGTERM or Ctrl-C. Health: `GET /healthz`; metrics: `GET /metrics`;
    state: `GET /v1/status`.
    """
    if context.invoked_subcommand is not None:
        return
    if version:
        typer.echo(__version__)
        return
    if print_example:
        typer.echo(example(), nl=False)
        return
    try:
        settings = load(config, os.environ)
        settings = dataclasses.replace(
            settings,
            host=settings.host if host is None else host,
            port=settings.port if port is None else port,
            data_directory=settings.data_directory if data is None else data,
        )
        _log(settings.log_level)
        uvloop.run(_run(settings))
    except P2pdistError as error:
        typer.echo(f"p2pdist-tracker: {error}", err=True)
        raise typer.Exit(1) from error


def _log(level: str) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _run(settings: TrackerSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gc.freeze()  # modules and classes stay: no collection looks at them again
    # Thousands of agents are no garbage: only what is new is looked at; `leftovers` says when to look everywhere.
    gc.set_threshold(250_000, 1_000_000, 1000)
    await serve(settings, stop)


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
