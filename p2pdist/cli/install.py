"""`p2pdist install`: puts the mirror into a container daemon's own configuration; for an init container or by hand."""

from __future__ import annotations

import os
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from p2pdist.cli.checks import mirror_url
from p2pdist.cli.daemons import Snippet, snippets
from p2pdist.config import load_agent
from p2pdist.errors import ConfigError, StorageError

_MARK = "# Written by `p2pdist install`, which replaces it; `p2pdist install --remove` takes it away.\n"
_MAX_FILE = 1024 * 1024


class Daemon(StrEnum):
    """Those that read a file of its own for each purpose; dockerd has one file for everything."""

    CONTAINERD = "containerd"
    CONTAINERS = "podman"


_OF = {Daemon.CONTAINERD: "containerd", Daemon.CONTAINERS: "podman, buildah, skopeo, CRI-O"}


def install(
    daemon: Annotated[Daemon, typer.Argument(help="Whose configuration: containerd, or podman (CRI-O too).")],
    root: Annotated[
        Path, typer.Option("--root", help="Where the host's file system is, if this is a container.")
    ] = Path("/"),
    remove: Annotated[bool, typer.Option("--remove", help="Take it away again.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's configuration file.")
    ] = None,
) -> None:
    """Have a container daemon ask this node's mirror first. Its own way to the registries stays open.

    Writes one file, which the daemon reads at each pull; never over one that somebody else wrote.
    """
    settings = load_agent(config, os.environ)
    scheme, _, mirror = mirror_url(settings, None).partition("://")
    if scheme != "http":
        raise ConfigError(
            "mirror.tls_certificate: what a daemon needs to trust it is not known here: set it up by hand"
        )
    known = {one.daemon: one for one in snippets(mirror, [registry.name for registry in settings.registries])}
    snippet = known[_OF[daemon]]
    path = root / snippet.path.lstrip("/")
    changed = _remove(path) if remove else _write(path, snippet)
    typer.echo(f"{path}: {'removed' if remove else 'written'}" if changed else f"{path}: nothing to do")


def _write(path: Path, snippet: Snippet) -> bool:
    text = _MARK + snippet.text + "\n"
    found = _ours(path)
    if found == text:
        return False
    staging = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staging.open("x", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staging.rename(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}") from error
    return True


def _remove(path: Path) -> bool:
    if _ours(path) is None:
        return False
    try:
        path.unlink()
    except OSError as error:
        raise StorageError(f"{path} can't be removed: {error.strerror or error}") from error
    return True


def _ours(path: Path) -> str | None:
    """What an earlier `install` wrote; None: there is no file. ConfigError: it is somebody else's."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror or error}") from error
    if not text.startswith(_MARK):
        raise ConfigError(f"{path} is not ours, so it stays as it is: put the mirror into it by hand, or move it away")
    return text
