"""The command line: one module per command, and how all of them fail."""

from __future__ import annotations

import sys

import typer

from p2pdist.cli.agent import agent
from p2pdist.cli.demo import demo
from p2pdist.cli.doctor import doctor
from p2pdist.cli.install import install
from p2pdist.cli.keep import keep
from p2pdist.cli.policy import policy
from p2pdist.cli.preheat import preheat
from p2pdist.cli.status import status
from p2pdist.cli.torrent import torrent
from p2pdist.cli.up import up
from p2pdist.cli.verify import verify
from p2pdist.cli.version import version
from p2pdist.errors import InputError, P2pdistError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Peer-to-peer distribution of container images: a registry mirror on every node that fetches from the others.",
)
for command in (up, agent, install, demo, status, verify, doctor, version):
    app.command()(command)
app.add_typer(policy, name="policy")
app.add_typer(preheat, name="preheat")
app.add_typer(keep, name="keep")
app.add_typer(torrent, name="torrent")


def main() -> None:
    """The console script. Exit status: 0 well, 1 something did not work, 2 wrong command line or configuration."""
    try:
        app()
    except P2pdistError as error:
        sys.stderr.write(f"p2pdist: {error}\n")
        sys.exit(2 if isinstance(error, InputError) else 1)
