"""`p2pdist torrent`: images out to any BitTorrent client, and back into an agent whose registry is out of reach."""

from __future__ import annotations

import asyncio
import os
import platform as machine
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from p2pdist.admin import AdminClient, NoAgent
from p2pdist.cli.checks import mirror_url
from p2pdist.cli.units import in_bytes
from p2pdist.config import AgentConfig, load_agent
from p2pdist.errors import ConfigError, StorageError
from p2pdist.oci import Platform, Reference

if TYPE_CHECKING:
    from p2pdist.torrent.export import ImageSource

torrent = typer.Typer(no_args_is_help=True, help="Images to and from any BitTorrent client.")
_CONFIG = typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's configuration file.")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@torrent.command(name="export")
def export(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help='As daemons name it: "alpine:3.20".')],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Directory to make; the .torrent goes beside it."),
    ] = None,
    piece_size: Annotated[
        int | None, typer.Option("--piece-size", metavar="BYTES", help="A power of two from 16384 to 16777216.")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option("--tracker", metavar="URL", help="Announce URL; repeatable.")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform", metavar="OS/ARCH", help="Of an image for several; repeatable. Default: this machine's."
        ),
    ] = None,
    all_platforms: Annotated[bool, typer.Option("--all-platforms", help="Everything that the image names.")] = False,
    client_certificate: Annotated[
        Path | None, typer.Option(help="For a mirror that wants one (mirror.client_ca): PEM, with its authorities.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    config: Annotated[Path | None, _CONFIG] = None,
) -> None:
    """Write an image as an OCI layout, with a .torrent and a magnet link that any client can take and seed.

    A running agent fetches what it does not have; with none, the image must be in the store.
    """
    from p2pdist.torrent.export import export_image

    reference = Reference.parse(image)
    directory = output or Path(f"{reference.repository.name.rsplit('/', 1)[-1]}-{reference.tag or 'image'}.oci")
    own = (client_certificate, client_key or client_certificate) if client_certificate is not None else None
    platforms = None if all_platforms else [_platform(text) for text in platform or [_this_machine()]]

    async def work() -> None:
        async with AsyncExitStack() as stack:
            source = await _source(stack, load_agent(config, os.environ), own)
            made = await export_image(
                source, reference, directory, platforms=platforms, piece_size=piece_size, trackers=tracker or ()
            )
        size, pieces = in_bytes(made.torrent.size), in_bytes(made.torrent.piece_size)
        typer.echo(f"image      {made.image}")
        typer.echo(f"directory  {made.directory} ({size})")
        typer.echo(f"torrent    {made.file} (pieces of {pieces})")
        typer.echo(f"info-hash  {made.torrent.info_hash.hex()}")
        typer.echo(f"magnet     {made.torrent.magnet}")

    asyncio.run(work())


@torrent.command(name="import")
def import_(
    what: Annotated[
        str, typer.Argument(metavar="FILE|MAGNET|DIR", help="A .torrent, a magnet link, or an OCI layout.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="IMAGE", help="What the image is called, if the layout does not say."),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", help="Where a torrent is downloaded to, and kept.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="ADDRESS:PORT", help="A client that has it; repeatable.")
    ] = None,
    config: Annotated[Path | None, _CONFIG] = None,
) -> None:
    """Take an image back: every digest is proved, then the agent serves it, also with the registry out of reach."""
    settings = load_agent(config, os.environ)
    if name is not None:
        Reference.parse(name)  # before anything is downloaded
    path = Path(what)
    if path.is_dir():
        asyncio.run(_import(settings, path.absolute(), name))
        return
    with tempfile.TemporaryDirectory(prefix="p2pdist-import-") as temporary:
        target = (directory or Path(temporary)).absolute()
        _download(what, target, peer or [])
        asyncio.run(_import(settings, target, name))


@torrent.command(name="seed")
def seed(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .torrent; what it is of lies beside it.")],
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS:PORT")] = "0.0.0.0:6881",
) -> None:
    """Give an exported image to whoever asks for it, until Ctrl-C."""
    from p2pdist.torrent.download import ClientSettings, Progress
    from p2pdist.torrent.download import seed as give

    said = False

    def report(port: int, progress: Progress) -> bool:
        nonlocal said
        if not said:
            said = True
            typer.echo(f"seeding {in_bytes(progress.total)} on port {port}; Ctrl-C ends it")
        return True

    try:
        give(file, file.absolute().parent, ClientSettings(listen=listen), report)
    except KeyboardInterrupt:
        typer.echo("stopped")


def _download(what: str, directory: Path, peers: list[str]) -> None:
    from p2pdist.torrent.download import ClientSettings, Progress, download

    directory.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("looking for peers") as line:

        def report(progress: Progress) -> bool:
            line.update(f"{in_bytes(progress.done)} of {in_bytes(progress.total)} from {progress.peers} peers")
            return True

        download(what, directory, ClientSettings(peers=tuple(_peer(text) for text in peers)), report)


async def _import(config: AgentConfig, directory: Path, name: str | None) -> None:
    """By the running agent, which has the store; by this process where there is none."""
    from p2pdist.retention import Retention
    from p2pdist.store import Store
    from p2pdist.torrent.import_ import import_layout

    if config.admin_socket.exists():
        try:
            async with AdminClient(config.admin_socket, timeout_seconds=3600.0) as client:
                images = await client.import_image(directory, name)
            _say(images)
            return
        except NoAgent:
            pass  # its socket was left behind
    store = await Store.open(config.node.data_dir, max_bytes=config.node.max_store_bytes)
    try:
        await Retention.of(config, store).load()  # what is kept makes no room for what comes
        reference = Reference.parse(name) if name is not None else None
        imported = await import_layout(store, directory, reference=reference)
    finally:
        await store.close()
    _say([(image, str(digest)) for image, digest in imported.images])


def _say(images: list[tuple[str, str]]) -> None:
    for image, digest in images:
        typer.echo(f"{image}  {digest}")


async def _source(stack: AsyncExitStack, config: AgentConfig, own: tuple[Path, Path] | None) -> ImageSource:
    from p2pdist.store import Store
    from p2pdist.torrent.sources import MirrorSource, StoreSource

    url, settings = mirror_url(config, None), config.mirror
    source = MirrorSource(url, settings.tls_certificate, own=own, passwords=settings.password_file)
    mirror = await stack.enter_async_context(source)
    if await mirror.answers():
        return mirror
    try:
        store = await Store.open(config.node.data_dir, max_bytes=config.node.max_store_bytes)
    except StorageError as error:
        if settings.client_ca is None:
            raise
        wanted = "give --client-certificate and --client-key" if own is None else f"{own[0]} was not taken"
        text = f"the agent's mirror lets only in who has a certificate of {settings.client_ca}: {wanted}"
        raise ConfigError(text) from error
    stack.push_async_callback(store.close)
    return StoreSource(store)


def _this_machine() -> str:
    return f"linux/{_MACHINES.get(machine.machine(), machine.machine())}"


def _platform(text: str) -> Platform:
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise ConfigError(f"--platform: {text!r} is not OS/ARCH or OS/ARCH/VARIANT")
    return Platform(parts[0], parts[1], "".join(parts[2:]))


def _peer(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"--peer: {text!r} is not ADDRESS:PORT")
    return host.strip("[]"), int(port)
