"""`p2pdist doctor`: whether this node is set up as it should be, and what to do where it isn't."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from p2pdist.cli.bypass import Containerd, Daemon, Dockerd, check_bypass
from p2pdist.cli.checks import Finding, State, check_node
from p2pdist.cli.lines import Line, show
from p2pdist.config import load_agent
from p2pdist.errors import ConfigError
from p2pdist.oci import Reference

_STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}


class DaemonName(StrEnum):
    """The daemons that can be asked."""

    DOCKER = "docker"
    CONTAINERD = "containerd"


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's configuration file.")
    ] = None,
    daemon: Annotated[
        DaemonName | None,
        typer.Option(
            "--daemon",
            help="Ask this daemon for --image, by `docker` (DOCKER_HOST) or `ctr` (CONTAINERD_ADDRESS), and see "
            "whether it gets past the policy. What it gets is removed again.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="REF", help="With --daemon: an image that the policy refuses.")
    ] = None,
    hosts_dir: Annotated[
        Path, typer.Option("--hosts-dir", help="With --daemon containerd: where its hosts.toml files are.")
    ] = Path("/etc/containerd/certs.d"),
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that the daemon may take.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check this node: configuration, data directory, agent, mirror, registries, tracker, policy.

    With --daemon also that a container daemon gets no image that the policy refuses.

    Exit status: 0 nothing failed, 1 something did, 2 wrong command line.
    """
    if (daemon is None) != (image is None):
        raise ConfigError("--daemon and --image belong together: which daemon is to be asked for which image?")
    asked = None if daemon is None or image is None else (_daemon(daemon, hosts_dir), Reference.parse(image))
    findings = asyncio.run(_examine(config, asked, timeout))
    failed = any(one.state is State.FAILED for one in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": not failed, "checks": [asdict(one) for one in findings]}))
    else:
        show(_lines(findings))
    raise typer.Exit(1 if failed else 0)


def _daemon(name: DaemonName, hosts_dir: Path) -> Daemon:
    return Dockerd() if name is DaemonName.DOCKER else Containerd(hosts_dir)


async def _examine(path: Path | None, asked: tuple[Daemon, Reference] | None, timeout: float) -> list[Finding]:
    where = "defaults and the environment" if path is None else str(path)
    try:
        config = load_agent(path, os.environ)
    except ConfigError as error:
        remedy = "correct it; docs/configuration.md has every option"
        return [Finding("configuration", State.FAILED, str(error), remedy)]
    findings = [Finding("configuration", State.OK, where), *await check_node(config)]
    if asked is not None:
        findings.append(await check_bypass(config, *asked, timeout))
    return findings


def _lines(findings: list[Finding]) -> list[Line]:
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        lines.append(Line(f"{one.check:<{width}}  {one.detail}", f"{one.state:<11}", _STYLES[one.state]))
        if one.remedy:
            lines.append(Line(one.remedy, "what to do:", "bold", 13))
    return lines
