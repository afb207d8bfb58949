"""`p2pdist-tracker token` and `bans`: change what the tracker keeps, wherever that is, and whether it runs or not."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.hashes import SHA256

from p2pdist.errors import ConfigError, P2pdistError
from tracker.authority import open_authority
from tracker.config import TrackerSettings, load
from tracker.durations import seconds_in
from tracker.state import State, open_configured
from tracker.tokens import FOREVER, Ban, Facts
from tracker.trials import Proof

token = typer.Typer(help="Join tokens: who has one can enrol nodes.", no_args_is_help=True)
bans = typer.Typer(help="Nodes that are shut out.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", "-c", help="The tracker's TOML file.")]
Data = Annotated[str | None, typer.Option(help="The tracker's data directory; overrides the file.")]
Url = Annotated[
    str | None, typer.Option("--state", help="URL of the Redis or Valkey of its replicas; overrides the file.")
]


@token.command("create")
def create(
    ttl: Annotated[str, typer.Option(help="How long it opens the door: 30m, 24h, 7d.")] = "24h",
    uses: Annotated[int | None, typer.Option(min=1, help="For how many nodes; any number without it.")] = None,
    node_label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Label of its nodes; repeatable.")] = None,
    config: Config = None,
    data: Data = None,
    state: Url = None,
) -> None:
    """Make a join token and print it. It is shown this once: only its hash is kept."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        labels = dict(_label(text) for text in node_label or [])
        authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
        fingerprint = authority.certificate.fingerprint(SHA256())
        made = await Facts(opened).new_token(fingerprint, time.time(), seconds_of(ttl), uses, labels)
        typer.echo(str(made))

    with_state(config, data, state, work)


@token.command("list")
def list_tokens(config: Config = None, data: Data = None, state: Url = None) -> None:
    """Tokens that have not expired: number, end, uses, labels."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        for one in await Facts(opened).tokens():
            uses = f"{one.used} of {one.uses or 'any number of'} uses"
            labels = " ".join(f"{key}={value}" for key, value in one.labels.items())
            typer.echo(f"{one.number}  until {shown_date(one.expires)}  {uses}  {labels}".rstrip())

    with_state(config, data, state, work)


@token.command("revoke")
def revoke(number: str, config: Config = None, data: Data = None, state: Url = None) -> None:
    """End a token, by its number. Nodes that came in with it stay; shut them out with `bans add`."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        if not await Facts(opened).revoke(number):
            raise ConfigError(f"no token has the number {number!r}; see `p2pdist-tracker token list`")

    with_state(config, data, state, work)


@bans.command("list")
def list_bans(config: Config = None, data: Data = None, state: Url = None) -> None:
    """Who is shut out, until when, why, and what it signed that proves it."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        for ban in (await Facts(opened).bans()).values():
            typer.echo(f"{ban.node.hex()}  until {shown_date(ban.until)}  {ban.reason}")
            if ban.evidence:
                typer.echo(f"  {Proof.unpack(ban.evidence)}")

    with_state(config, data, state, work)


@bans.command("add")
def add(
    node: str,
    reason: Annotated[str, typer.Option(help="Shown to the node and in the list.")] = "by an operator",
    ttl: Annotated[str | None, typer.Option(help="For how long: 30m, 24h, 7d; for ever without it.")] = None,
    config: Config = None,
    data: Data = None,
    state: Url = None,
) -> None:
    """Shut a node out: its certificate is worth nothing any more, at every running node within seconds."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        until = FOREVER if ttl is None else time.time() + seconds_of(ttl)
        await Facts(opened).ban(Ban(_node(node), until, reason))

    with_state(config, data, state, work)


@bans.command("lift")
def lift(node: str, config: Config = None, data: Data = None, state: Url = None) -> None:
    """Let a node in again."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        if not await Facts(opened).lift(_node(node)):
            raise ConfigError(f"{node} is not banned; see `p2pdist-tracker bans list`")

    with_state(config, data, state, work)


def with_state(
    config: Path | None, data: str | None, url: str | None, work: Callable[[State, TrackerSettings], Awaitable[None]]
) -> None:
    """Do something with the state of the tracker that these options name. Our errors are one line and status 1."""
    try:
        settings = load(config, os.environ)
        settings = replace(
            settings,
            data_directory=settings.data_directory if data is None else data,
            state=settings.state if url is None else replace(settings.state, url=url),
        )
        if not settings.state.url and not settings.data_directory:
            raise ConfigError("say where the tracker keeps its state: --data or --state, or --config with either in it")
        asyncio.run(_with_state(settings, work))
    except P2pdistError as error:
        typer.echo(f"p2pdist-tracker: {error}", err=True)
        raise typer.Exit(1) from error


async def _with_state(settings: TrackerSettings, work: Callable[[State, TrackerSettings], Awaitable[None]]) -> None:
    state = open_configured(settings.state, settings.data_directory)
    try:
        await work(state, settings)
    finally:
        await state.close()


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z0-9._/-]{1,63}", key) or len(value) > 255:
        raise ConfigError(f"--node-label: wanted KEY=VALUE, got {text!r}")
    return key, value


def seconds_of(text: str) -> float:
    """Seconds in a time like 30m, 24h or 7d. ConfigError."""
    seconds = seconds_in(text)
    if seconds is None:
        raise ConfigError(f"--ttl: wanted a time like 30m, 24h or 7d, got {text!r}")
    return float(seconds)


def _node(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"a node is 64 hex digits (`p2pdist status` shows its id), got {text!r}")
    return bytes.fromhex(text)


def shown_date(when: float) -> str:
    """Unix seconds as people read them."""
    return "for ever" if when >= FOREVER else datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
