"""`p2pdist up`: everything one node needs in one command: an agent, and a tracker unless it joins another node's."""

from __future__ import annotations

import asyncio
import os
import socket
import textwrap
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from p2pdist.cli.checks import mirror_url
from p2pdist.cli.daemons import snippets
from p2pdist.cli.logs import set_up_logging
from p2pdist.cli.running import run_server
from p2pdist.config import AgentConfig, RegistryConfig, load_agent
from p2pdist.errors import ConfigError

_TOKEN_SECONDS = 86_400.0  # for the other nodes: until tomorrow; a start prints a new one
_OWN_TOKEN_SECONDS = 600.0
_NOWHERE = ("192.0.2.1", 9)  # TEST-NET-1 (RFC 5737): asked for the way there, never sent to


def up(
    join: Annotated[
        str | None, typer.Option("--join", metavar="URL", help="Use this tracker instead of running one here.")
    ] = None,
    registry: Annotated[
        list[str] | None,
        typer.Option(
            "--registry", metavar="NAME[=URL]", help="Serve this registry too, besides docker.io; repeatable."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where blobs and the node's key are kept.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port of the mirror, on 127.0.0.1.")] = None,
    peer_port: Annotated[int | None, typer.Option("--peer-port", help="Port for the other nodes.")] = None,
    tracker_port: Annotated[
        int, typer.Option("--tracker-port", min=1, max=65535, help="Port of the tracker here.")
    ] = 7070,
    address: Annotated[
        str | None, typer.Option("--address", help="Where other nodes reach this one, if what is found is wrong.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Join token that the first node printed; needed once.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No encryption, no certificates, on every node: closed networks only.")
    ] = False,
) -> None:
    """Run a node with sensible defaults, and say what to tell the container daemons.

    Options of `p2pdist agent` can be set by their environment variables, too.
    """
    config = load_agent(None, os.environ)
    config = _with(config, "--data-dir", "node", data_dir=data_dir and data_dir.absolute())
    config = _with(config, "--port", "mirror", port=port)
    config = _with(config, "--peer-port", "peer", port=peer_port)
    config = _with(config, "--address", "peer", advertise_host=address)
    config = _with(config, "--insecure", "cluster", insecure=insecure or None)
    config = _with(config, "--token", "cluster", token=token)
    scheme = "http" if config.cluster.insecure else "https"
    config = _with(config, "--join", "tracker", urls=(join or f"{scheme}://127.0.0.1:{tracker_port}",))
    if join is None and config.peer.advertise_host is None:  # the tracker here would see 127.0.0.1
        config = _with(config, "--address", "peer", advertise_host=own_address())
    added = [_registry(text) for text in registry or []]
    kept = [known for known in config.registries if known.name not in {new.name for new in added}]
    config = replace(config, registries=(*kept, *added))
    set_up_logging(config.log)
    run_server(lambda stop: _serve(config, stop, None if join else tracker_port), config.node.shutdown_seconds)


def _with(config: AgentConfig, option: str, section: str, **values: object) -> AgentConfig:
    """`config` with the command line's `option` over it, where it was given. Raises ConfigError that names it."""
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return replace(config, **{section: replace(getattr(config, section), **given)})
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error


def _registry(text: str) -> RegistryConfig:
    name, _, url = text.partition("=")
    try:
        return RegistryConfig(name=name, url=url or None)
    except ConfigError as error:
        raise ConfigError(f"--registry: {error}") from error


async def _serve(config: AgentConfig, stop: asyncio.Event, tracker_port: int | None) -> None:
    from p2pdist.agent import Agent  # here: only a process that runs them loads the whole of agent and tracker
    from tracker.app import RunningTracker, TrackerSettings

    others = ""
    async with AsyncExitStack() as stack:
        if tracker_port is not None:
            settings = TrackerSettings(
                host="0.0.0.0",
                port=tracker_port,
                data_directory=str(config.node.data_dir / "tracker"),
                insecure=config.cluster.insecure,
            )
            tracker = await stack.enter_async_context(RunningTracker(settings))
            if not config.cluster.insecure:
                others = await tracker.new_token(_TOKEN_SECONDS)
                own = replace(config.cluster, token=await tracker.new_token(_OWN_TOKEN_SECONDS, 1), token_file=None)
                config = replace(config, cluster=own)
        await Agent(config).run(lambda _: typer.echo(welcome(config, tracker_port, others)), stop)


def welcome(config: AgentConfig, tracker_port: int | None, token: str = "") -> str:
    """What stands on the terminal once the node is ready.

    `tracker_port`: of the tracker in this process, if any; `token`: with which other nodes become members.
    """
    url = mirror_url(config, None)
    scheme, _, mirror = url.partition("://")
    names = [registry.name for registry in config.registries]
    lines = [f"This node mirrors {', '.join(names)} at {url}, and keeps its data in {config.node.data_dir}."]
    for snippet in snippets(mirror, names, tls=scheme == "https"):
        lines += [
            "",
            f"{snippet.daemon}: into {snippet.path}",
            "",
            *_indented(snippet.text),
            "",
            *_wrapped(snippet.note),
        ]
    lines.append("")
    if tracker_port is None:
        lines.append(f"It works with the nodes of the tracker at {', '.join(config.tracker.urls)}.")
    elif config.cluster.insecure:
        lines += [
            "On every other node (connections are neither encrypted nor authenticated: closed networks only):",
            "",
            f"    p2pdist up --insecure --join http://{config.peer.advertise_host}:{tracker_port}",
        ]
    else:
        lines += [
            "On every other node (the token makes it a member, and is good for a day; keep it from others):",
            "",
            f"    p2pdist up --join https://{config.peer.advertise_host}:{tracker_port} --token {token}",
        ]
    return "\n".join(["", *lines, "", "Ctrl-C stops it; the daemons then ask the registries themselves.", ""])


def own_address() -> str:
    """This host's address on the way to other hosts; 127.0.0.1 when there is no such way. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_NOWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _wrapped(text: str) -> list[str]:
    """For reading; what is to be copied must never be broken."""
    return textwrap.wrap(text, 100, break_on_hyphens=False, break_long_words=False)


def _indented(text: str) -> list[str]:
    return [f"    {line}".rstrip() for line in text.split("\n")]
