"""`p2pdist preheat`: have nodes pull an image before a daemon asks for it; look at such orders, and cancel them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from p2pdist.cli.operator import ADMIN_VARIABLE, Operator
from p2pdist.cli.units import in_bytes
from p2pdist.config import load_agent
from p2pdist.errors import ConfigError, TrackerError

_EVERY = 1.0  # seconds between two looks of --wait
_PATIENCE = 60.0  # seconds for which --wait goes on while no tracker answers
_FOR_EVER = 10 * 365 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
T = TypeVar("T")

Tracker = Annotated[
    list[str] | None, typer.Option("--tracker", metavar="URL", help="Tracker to ask; repeatable. Else tracker.urls.")
]
Admin = Annotated[
    Path | None,
    typer.Option("--admin", envvar=ADMIN_VARIABLE, help="Directory that `p2pdist-tracker admin create` made."),
]
Config = Annotated[
    Path | None, typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's file, for tracker.urls.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, as the tracker gives it.")]


class _OrderFirst(typer.core.TyperGroup):
    """`p2pdist preheat IMAGE`: what is no command is an image."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["order", *args]
        return super().parse_args(ctx, args)


preheat = typer.Typer(
    cls=_OrderFirst,
    no_args_is_help=True,
    help="Have nodes pull an image before a daemon asks for it: `p2pdist preheat IMAGE`. It costs one copy upstream.",
)


@preheat.command("order")
def order(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="As it is pulled: ghcr.io/acme/app:1.2")],
    nodes: Annotated[int | None, typer.Option(min=1, help="On so many nodes (of those with the labels).")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", metavar="K=V,...", help="On nodes that have all of them; repeatable."),
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all", help="On all nodes; also without --nodes and --labels.")] = False,
    platform: Annotated[
        list[str] | None,
        typer.Option(metavar="OS/ARCH,...", help="Of these platforms; each node's own without it. Repeatable."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Never evict it (`p2pdist keep remove` ends that).")] = False,
    keep_for: Annotated[str | None, typer.Option(metavar="TIME", help="Do not evict it for so long: 12h, 7d.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show how it goes, until it is over.")] = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="With --wait: not longer than this: 30m.")] = None,
    as_json: AsJson = False,
    tracker: Tracker = None,
    admin: Admin = None,
    config: Config = None,
) -> None:
    """Have nodes pull an image; the word "order" can be left out.

    Exit status with --wait: 0 every node has it, 1 one has not.
    """
    if everywhere and (nodes or labels):
        raise ConfigError("--all and --nodes or --labels: which?")
    asked = {
        "reference": image,
        "nodes": nodes or 0,
        "labels": dict(_label(text) for text in _parts(labels)),
        "platforms": list(_parts(platform)),
        "keep": _seconds(keep_for, "--keep-for") if keep_for else _FOR_EVER if keep else 0,
    }
    limit = _seconds(timeout, "--timeout") if timeout else None

    async def work(operator: Operator) -> dict[str, Any]:
        job = await operator.ask("POST", "/v1/jobs", asked)
        return await _follow(operator, job, limit, quiet=as_json) if wait else job

    job = _run(work, tracker, admin, config)
    if as_json:
        typer.echo(json.dumps(job))
    elif wait:
        Console().print(_nodes_table(job))
    else:
        typer.echo(job["id"])
    if wait and job["state"] != "done":
        raise typer.Exit(1)


@preheat.command("list")
def list_jobs(as_json: AsJson = False, tracker: Tracker = None, admin: Admin = None, config: Config = None) -> None:
    """The orders that the tracker knows, the newest first."""
    found = _run(lambda operator: operator.ask("GET", "/v1/jobs"), tracker, admin, config)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "image", "state", "nodes", "ordered", "by"):
        table.add_column(heading, overflow="fold")
    for job in found["jobs"]:
        table.add_row(job["id"], job["reference"], job["state"], _counts(job), _date(job["created"]), job["by"])
    Console().print(table)


@preheat.command("show")
def show(
    number: Annotated[str, typer.Argument(metavar="ID")],
    as_json: AsJson = False,
    tracker: Tracker = None,
    admin: Admin = None,
    config: Config = None,
) -> None:
    """One order, node by node."""
    job = _run(lambda operator: operator.ask("GET", f"/v1/jobs/{_id(number)}"), tracker, admin, config)
    if as_json:
        typer.echo(json.dumps(job))
    else:
        Console().print(_nodes_table(job))


@preheat.command("cancel")
def cancel(
    number: Annotated[str, typer.Argument(metavar="ID")],
    tracker: Tracker = None,
    admin: Admin = None,
    config: Config = None,
) -> None:
    """Stop an order. What nodes have of the image they keep, as any other."""
    job = _run(lambda operator: operator.ask("DELETE", f"/v1/jobs/{_id(number)}"), tracker, admin, config)
    typer.echo(job["state"])


def _run(
    work: Callable[[Operator], Awaitable[T]], tracker: list[str] | None, admin: Path | None, config: Path | None
) -> T:
    async def run() -> T:
        urls = tracker or list(load_agent(config, os.environ).tracker.urls)
        async with Operator(urls, admin) as operator:
            return await work(operator)

    return asyncio.run(run())


async def _follow(operator: Operator, job: dict[str, Any], limit: float | None, *, quiet: bool) -> dict[str, Any]:
    """Look until it is over; the job as it was last seen."""
    began = heard = time.monotonic()
    said = ""
    while job["state"] == "running":
        line = progress_line(job)
        if not quiet and line != said:
            sys.stderr.write(f"{line}\n")
            said = line
        if limit is not None and time.monotonic() - began >= limit:
            sys.stderr.write(f"p2pdist: not done after {limit:g} s; it goes on: p2pdist preheat show {job['id']}\n")
            break
        await asyncio.sleep(_EVERY)
        try:
            job = await operator.ask("GET", f"/v1/jobs/{job['id']}")
            heard = time.monotonic()
        except TrackerError:  # a replica is away; the order is not
            if time.monotonic() - heard >= _PATIENCE:
                raise
    return job


def progress_line(job: Mapping[str, Any]) -> str:
    """How far a job is, in one line."""
    rows = job["nodes"]
    done, size = sum(row["size_done"] for row in rows), sum(row["size"] for row in rows)
    wanted = f" of {job['wanted']}" if job["wanted"] > len(rows) else ""
    return f"{len(rows)}{wanted} nodes: {_counts(job) or 'none yet'}; {in_bytes(done)} of {in_bytes(size)}"


def _counts(job: Mapping[str, Any]) -> str:
    counts = dict(job["counts"])
    if job["left_out"]:
        counts["left out"] = job["left_out"]
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _nodes_table(job: Mapping[str, Any]) -> Table:
    table = Table(
        box=None, pad_edge=False, title=f"{job['reference']}  {job['state']}  {_counts(job)}", title_justify="left"
    )
    for heading in ("node", "state", "blobs", "size", ""):
        table.add_column(heading, overflow="fold")
    for row in job["nodes"]:
        size = f"{in_bytes(row['size_done'])} of {in_bytes(row['size'])}"
        name = _printable(row["name"] or row["node"][:16])
        table.add_row(name, row["state"], f"{row['blobs_done']} of {row['blobs']}", size, _printable(row["error"]))
    return table


def _printable(text: str) -> str:
    """Names and errors are others': nothing in them is markup or control."""
    return "".join(character if character.isprintable() else "?" for character in text).replace("[", r"\[")


def _parts(texts: list[str] | None) -> Iterator[str]:
    for text in texts or []:
        yield from filter(None, (part.strip() for part in text.split(",")))


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise ConfigError(f"--labels: wanted KEY=VALUE, got {text!r}")
    return key, value


def _seconds(text: str, option: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise ConfigError(f"{option}: wanted a time like 30m, 24h or 7d, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def _id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-z]{1,32}", text):
        raise ConfigError(f"not the id of a preheat: {text[:80]!r}; see `p2pdist preheat list`")
    return text


def _date(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
