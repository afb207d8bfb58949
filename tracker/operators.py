"""`p2pdist-tracker deny` and `admin`: what operators order where they have the tracker's state or its authority."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pdist.errors import ConfigError
from p2pdist.oci import ImagePattern
from p2pdist.pki import Role, write_secret
from tracker import commands
from tracker import deny as denials
from tracker.authority import open_authority
from tracker.commands import Config, Data, Url, with_state
from tracker.config import TrackerSettings
from tracker.state import State

deny = typer.Typer(help="Images that no node gives to anybody.", no_args_is_help=True)
admin = typer.Typer(help="Operators: who may order preheats.", no_args_is_help=True)

Subject = Annotated[
    str,
    typer.Argument(
        metavar="DIGEST|REFERENCE",
        help="A digest (of an image or a layer), an image, a repository (all of it), or a pattern: ghcr.io/acme/*:1.*",
    ),
]


@deny.command("add")
def add(
    subject: Subject,
    why: Annotated[str, typer.Option(help="Shown to whoever tries to pull it.")],
    config: Config = None,
    data: Data = None,
    state: Url = None,
) -> None:
    """Have every node refuse it and drop it from its cache, within seconds."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        pattern = ImagePattern.parse(subject)
        await denials.deny(opened, pattern, why, time.time())
        everything = " (the whole repository)" if pattern.whole and pattern.digest is None else ""
        typer.echo(f"denied: {pattern.text}{everything}")

    with_state(config, data, state, work)


@deny.command("list")
def list_denied(config: Config = None, data: Data = None, state: Url = None) -> None:
    """What is denied, since when, and why."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        for text, entry in (await denials.listed(opened)).items():
            typer.echo(f"{text}  since {commands.shown_date(entry.at)}  {entry.why}")

    with_state(config, data, state, work)


@deny.command("remove")
def remove(subject: Subject, config: Config = None, data: Data = None, state: Url = None) -> None:
    """Take it off the list: it can be pulled again."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        pattern = ImagePattern.parse(subject)
        if not await denials.allow(opened, pattern):
            raise ConfigError(f"{pattern.text} is not on the list; see `p2pdist-tracker deny list`")

    with_state(config, data, state, work)


@admin.command("create")
def create(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for ca.crt, tls.crt and tls.key.")],
    ttl: Annotated[str, typer.Option(help="How long it is valid: 12h, 30d.")] = "30d",
    config: Config = None,
    data: Data = None,
    state: Url = None,
) -> None:
    """Make an operator's certificate, for `p2pdist preheat --admin DIRECTORY`. `bans add` with its id ends it early."""

    async def work(opened: State, settings: TrackerSettings) -> None:
        authority = open_authority(settings.data_directory, settings.authority_directory, time.time())
        key = Ed25519PrivateKey.generate()
        public = key.public_key()
        certificate = authority.issue(public, Role.ADMIN, {}, time.time(), commands.seconds_of(ttl))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for name, pem in (("ca.crt", authority.pem), ("tls.key", private), ("tls.crt", certificate)):
            write_secret(output / name, pem)
        typer.echo(public.public_bytes_raw().hex())

    with_state(config, data, state, work)
