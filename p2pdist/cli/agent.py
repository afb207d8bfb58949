"""`p2pdist agent`: an agent as a service runs it, told everything by a file and the environment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import structlog
import typer

from p2pdist.cli.logs import set_up_logging
from p2pdist.cli.running import run_server
from p2pdist.config import AgentConfig, load_agent


def agent(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="P2PDIST_CONFIG", help="TOML file; deploy/agent.example.toml has every option."
        ),
    ] = None,
) -> None:
    """Run an agent as its configuration says, until SIGTERM or Ctrl-C."""
    settings = load_agent(config, os.environ)
    set_up_logging(settings.log)
    run_server(lambda stop: _serve(settings, stop), settings.node.shutdown_seconds)


async def _serve(settings: AgentConfig, stop: asyncio.Event) -> None:
    from p2pdist.agent import Agent  # here: only a process that runs one loads the whole of it

    await Agent(settings).run(None, stop)
    structlog.get_logger().info("stopped")
