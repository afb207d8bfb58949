"""`p2pdist version`."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed_version

import typer

from p2pdist.protocol.limits import VERSION


def version() -> None:
    """Say which version this is, and which protocol it speaks."""
    typer.echo(f"p2pdist {installed_version('p2pdist')} (protocol {VERSION}, Python {platform.python_version()})")
