#!/usr/bin/env python3
"""Rollouts on one machine against the fluid limit: hosts as network namespaces, real registry, tracker and agents.

    bench/rollout.py                                   12 nodes, 50 Mbit/s, one layer of 64 MiB, all together
    bench/rollout.py --engine bittorrent               the same by the other engine
    bench/rollout.py --sites 6+6 --size 32 --other-flow    two sites on a link of 20 Mbit/s with other traffic on it
    bench/rollout.py --compare plain --compare proxy   the same pulls without peers, in the same run
    bench/rollout.py --suite                           every case with its goal; exit status 1 if one is missed
    bench/rollout.py --short                           4 nodes, seconds: what CI runs

Needs root, iproute2 and docker-registry (tests/system/packages.sh). Leaves nothing behind, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "tests")]

from lab.guard import CleanupError
from lab.net import need_root_and_iproute2
from lab.process import LabError
from lab.session import run_in_own_session
from rollout_model import Result, Settings
from rollout_plot import draw
from rollout_report import medians, print_rollout, settings_as_dict, strict_json
from rollout_run import run
from rollout_sites import Sites
from rollout_suite import run_short, run_suite

SHM = Path("/dev/shm")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 1 if something is wrong or a goal is missed, 2 if it can't run here, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        need_root_and_iproute2()
        settings = _settings(options)
    except (LabError, ValueError) as e:
        print(f"rollout.py: {e}", file=sys.stderr)
        return 2
    return run_in_own_session(lambda: _run(options, settings), nice=options.nice)


def _run(options: argparse.Namespace, settings: Settings) -> int:
    base = options.directory or _roomy(settings)
    try:
        if options.suite:
            return run_suite(options.runs or 3, base, as_json=options.json, only=options.only, base_settings=settings)
        if options.short:
            return run_short(base, as_json=options.json, base_settings=settings)
        return _rollouts(options, settings, base)
    except (LabError, CleanupError) as e:
        print(f"rollout.py: {e}", file=sys.stderr)
        return 1


def _rollouts(options: argparse.Namespace, settings: Settings, base: Path | None) -> int:
    plans = [settings, *(_compared(settings, transport) for transport in options.compare)]
    rows = []
    good = True
    for plan in plans:
        results: list[Result] = []
        for number in range(options.runs or 1):
            result = run(plan, base)
            results.append(result)
            good = good and result.verified and not result.errors
            if not options.json:
                print_rollout(plan, result, number + 1, options.runs or 1, nodes=options.verbose)
        rows.append({"settings": settings_as_dict(plan), **medians(results)})
        if options.plot is not None and plan is settings:
            draw(options.plot, plan, results[-1])
    if options.json:
        first, *others = rows
        print(strict_json({**first, "load": os.getloadavg(), "compare": others}))
    return 0 if good else 1


def _compared(settings: Settings, transport: str) -> Settings:
    """The same pulls another way; planned deaths make no sense there."""
    return replace(settings, transport=transport, kill=(), stop=(), kill_tracker=None, late=False)  # type: ignore[arg-type]


def _settings(options: argparse.Namespace) -> Settings:
    down = options.down if options.down is not None else options.rate
    up = options.up if options.up is not None else options.rate
    sites = _sites(options)
    if options.engine == "gateways" and sites is None:
        raise ValueError("--engine gateways is about two sites: it needs --sites")
    nodes = options.nodes if sites is None else sites.first + sites.second
    settings = Settings(
        nodes=nodes,
        up=up,
        down=down,
        registry=options.registry_rate if options.registry_rate is not None else options.rate,
        layers=options.layers,
        size=round(options.size * (1 << 20)),
        start=options.start,
        slow=tuple((n, float(x)) for n, x in _pairs(options.slow, ":", nodes)),
        late=options.late,
        transport=options.transport,
        driver=options.driver,
        engine=options.engine,
        tls=options.tls,
        sites=sites,
        seed=options.seed,
        agent=_tables(options.agent),
        tracker=_tables(options.tracker),
        keep_logs=options.logs,
    )
    _ = settings.layer_sizes  # says what is wrong with them
    limit = min(settings.limits.values())
    return replace(
        settings,
        kill=tuple((n, _moment(x, limit)) for n, x in _pairs(options.kill, "@", nodes)),
        stop=tuple((n, _moment(x, limit)) for n, x in _pairs(options.stop, "@", nodes)),
        kill_tracker=None if options.kill_tracker is None else _moment(options.kill_tracker, limit),
    )


def _sites(options: argparse.Namespace) -> Sites | None:
    if options.sites is None:
        if options.other_flow is not None:
            raise ValueError("--other-flow goes from site to site: it needs --sites")
        return None
    first, plus, second = options.sites.partition("+")
    if not (plus and first.isdigit() and second.isdigit() and int(first) and int(second)):
        raise ValueError(f"--sites {options.sites!r} should be NODES+NODES, like 6+6")
    return Sites(int(first), int(second), options.link_rate, options.link_delay, options.other_flow)


def _moment(text: str, limit: float) -> float:
    """Seconds, or per cent of the limit."""
    return float(text[:-1]) / 100 * limit if text.endswith("%") else float(text)


def _pairs(texts: Sequence[str], separator: str, nodes: int) -> list[tuple[int, str]]:
    pairs = []
    for text in (one for given in texts for one in given.split(",")):
        number, found, value = text.partition(separator)
        if not found or not number.isdigit() or not 1 <= int(number) <= nodes:
            raise ValueError(f"{text!r} should be NODE{separator}VALUE, with a node from 1 to {nodes}")
        pairs.append((int(number), value))
    return pairs


def _tables(texts: Sequence[str]) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for text in texts:
        try:
            parsed = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise ValueError(f"{text!r} is not section.key = value: {e}") from None
        for section, values in parsed.items():
            tables.setdefault(section, {}).update(values)
    return tables


def _roomy(settings: Settings) -> Path | None:
    """Memory, where there is enough: N nodes on one disk would measure the disk. The pullers need as much again."""
    wanted = settings.size * (settings.nodes + 2)
    if not SHM.is_dir():
        return None
    room = os.statvfs(SHM)
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return SHM if room.f_bavail * room.f_frsize > wanted and available > 2.5 * wanted else None


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nodes", type=int, default=12)
    p.add_argument("--rate", type=float, default=50.0, help="Mbit/s of every link, both ways")
    p.add_argument("--up", type=float, help="Mbit/s of a node's uplink")
    p.add_argument("--down", type=float, help="Mbit/s of a node's downlink")
    p.add_argument("--registry-rate", type=float, help="Mbit/s of the registry's link")
    p.add_argument("--layers", type=int, default=1)
    p.add_argument("--size", type=float, default=64.0, help="MiB of all layers together")
    p.add_argument("--start", default="together", help="together | poisson:SECONDS | waves:COUNT:SECONDS")
    p.add_argument(
        "--kill", action="append", default=[], metavar="N@T", help="node N dies at T (seconds, or 50%% of the limit)"
    )
    p.add_argument("--stop", action="append", default=[], metavar="N@T", help="node N hangs (SIGSTOP) at T")
    p.add_argument("--kill-tracker", metavar="T", help="the tracker dies at T")
    p.add_argument(
        "--slow", action="append", default=[], metavar="N:FRACTION", help="node N has this fraction of the rate"
    )
    p.add_argument("--late", action="store_true", help="one more node afterwards, with the registry off")
    p.add_argument("--transport", choices=["agents", "plain", "proxy"], default="agents")
    p.add_argument(
        "--engine",
        choices=["mesh", "bittorrent", "gateways"],
        default="mesh",
        help="how chunks move between agents; gateways: the mesh in each site, BitTorrent over uTP between them",
    )
    p.add_argument("--tls", action="store_true", help="certificates and mutual TLS, as a cluster has by default")
    p.add_argument("--sites", metavar="N+M", help="two sites, joined by one link; registry and tracker in the first")
    p.add_argument("--link-rate", type=float, default=20.0, help="Mbit/s between the sites, each way")
    p.add_argument("--link-delay", type=float, default=40.0, help="ms between the sites, one way")
    p.add_argument(
        "--other-flow",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="another TCP flow across the link, this long beside the transfer (10)",
    )
    p.add_argument("--compare", action="append", default=[], choices=["plain", "proxy"], help="also without peers")
    p.add_argument("--driver", choices=["puller", "containerd"], default="puller", help="who pulls on each node")
    p.add_argument("--agent", action="append", default=[], metavar="S.KEY=VALUE", help="a line of every agent's TOML")
    p.add_argument("--tracker", action="append", default=[], metavar="S.KEY=VALUE", help="a line of the tracker's TOML")
    p.add_argument("--runs", type=int, help="medians of this many (default 1; 3 with --suite)")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--suite", action="store_true", help="all cases with their goals")
    p.add_argument("--only", action="append", default=[], help="with --suite: cases whose name contains this")
    p.add_argument("--short", action="store_true", help="a few seconds, guards egress and correctness")
    p.add_argument("--json", action="store_true", help="one object instead of tables")
    p.add_argument("--plot", type=Path, metavar="FILE.svg", help="progress of the nodes over time (extra: plot)")
    p.add_argument("--logs", type=Path, metavar="DIR", help="keep every program's log there")
    p.add_argument("--directory", type=Path, help="where the nodes keep their data (default: memory if there is room)")
    p.add_argument("--nice", type=int, default=-10, help="of the bench's session against other sessions")
    p.add_argument("--verbose", "-v", action="store_true", help="every node")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
