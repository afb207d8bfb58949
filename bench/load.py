#!/usr/bin/env python3
"""Thousands of played agents against real tracker processes: the real protocol over real WebSockets, no data.

    bench/load.py --agents 2000                     one tracker, all agents pull an image of ten layers at once
    bench/load.py --agents 10000 --rate 1000        starts spread over ten seconds
    bench/load.py --agents 100 --rollouts 100 --chunks 1        ... and
    bench/load.py --agents 10000 --chunks 100       the same number of each message: what an announce costs by fleet
    bench/load.py --agents 2000 --tls               certificates and TLS 1.3, as by default in a cluster
    bench/load.py --agents 2000 --trackers 2 --redis redis://127.0.0.1:6379/0

Measured: how long agents wait for the answers to Join, Ask and Ping, what the tracker's CPU and memory are, per agent
and per message. The sessions are opened first and not part of the rollout's figures. Exit status 1 when a wait is over
a second. No root, no network but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from load_play import Plan, play

GOAL = 1.0  # seconds that an announce may wait
PATIENCE = 900.0  # seconds for the opening of all sessions, and for one rollout
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of one process or several: CPU seconds since they began, resident bytes now and at most."""

    cpu: float
    rss: int
    peak: int


def usage(pid: int) -> Usage:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    rss, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Usage((int(fields[11]) + int(fields[12])) / _TICK, rss, peak)


class Trackers:
    """The tracker processes under load."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.directory = directory
        self.authority = directory / "tracker" / "authority" if options.tls else None
        self.urls: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        environment = {
            **os.environ,
            "P2PDIST_TRACKER_INSECURE": str(not options.tls).lower(),
            "P2PDIST_TRACKER_LOG_LEVEL": "warning",
        }
        if options.redis:
            environment["P2PDIST_TRACKER_REDIS_URL"] = options.redis
        program = str(Path(sys.executable).with_name("p2pdist-tracker"))
        for number in range(options.trackers):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            with (directory / f"log{number}").open("wb") as log:
                argv = [program, "--data", str(directory / "tracker"), "--port", str(port)]
                self._processes.append(subprocess.Popen(argv, stdout=log, stderr=log, env=environment))
            _wait_for(port, self._processes[-1])
            self.urls.append(f"{'https' if options.tls else 'http'}://127.0.0.1:{port}")

    def usage(self) -> Usage:
        each = [usage(process.pid) for process in self._processes]
        return Usage(sum(one.cpu for one in each), sum(one.rss for one in each), sum(one.peak for one in each))

    def said(self) -> str:
        """Warnings and errors."""
        logs = sorted(self.directory.glob("log*"))
        return "".join(log.read_text(errors="replace")[-2000:] for log in logs)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)


class Drivers:
    """The processes that play the agents."""

    def __init__(self, options: argparse.Namespace, trackers: Trackers) -> None:
        context = multiprocessing.get_context("spawn")
        shared = context.RawArray("i", options.rollouts * options.processes * options.layers)
        chunks = options.layers * options.chunks
        half = 8 * options.seconds / chunks  # eight leases wait for their half at any time
        seed = secrets.token_hex(8)
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(options.processes):
            agents = options.agents // options.processes + (number < options.agents % options.processes)
            rate = options.rate / options.processes
            plan = Plan(
                number, options.processes, agents, tuple(trackers.urls), trackers.authority, options.layers,
                options.chunks, options.rollouts, half, options.lag * options.seconds, rate, seed,
            )  # fmt: skip
            ours, theirs = context.Pipe()
            process = context.Process(target=play, args=(plan, shared, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def order(self, what: str | int) -> list[dict[str, Any]]:
        """Tell every process; what each has seen, when all have done it."""
        for pipe in self._pipes:
            pipe.send(what)
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE):
                raise SystemExit(f"can't measure: {what!r} took over {PATIENCE:g} s")
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, str):
                raise SystemExit(f"can't measure: {answer}")
        return answers

    def usage(self) -> float:
        return sum(usage(process.pid).cpu for process in self._processes if process.pid)

    def stop(self) -> None:
        for pipe in self._pipes:
            pipe.send("end")
        for process in self._processes:
            process.join(20)
            process.kill()


def measure(options: argparse.Namespace, trackers: Trackers, drivers: Drivers) -> dict[str, Any]:
    """One run."""
    agents = options.agents
    empty = trackers.usage()
    begun = time.monotonic()
    drivers.order("connect")
    opened, opening = trackers.usage(), time.monotonic() - begun
    idle_cpu = None
    if options.idle:
        time.sleep(options.idle)
        drivers.order("idle")
        idle_cpu = (trackers.usage().cpu - opened.cpu) / options.idle
    before, driver_cpu, begun = trackers.usage(), drivers.usage(), time.monotonic()
    seen: list[dict[str, Any]] = []
    for number in range(options.rollouts):
        seen += drivers.order(number)
    seconds = time.monotonic() - begun
    after, driver_cpu = trackers.usage(), drivers.usage() - driver_cpu
    sent: Counter[str] = sum((one["sent"] for one in seen), Counter())
    received: Counter[str] = sum((one["received"] for one in seen), Counter())
    pings, pongs = sent.pop("Ping", 0), received.pop("Pong", 0)
    messages_in, messages_out = sum(sent.values()), sum(received.values())
    cpu = after.cpu - before.cpu
    chunks = options.rollouts * options.layers * options.chunks
    per_chunk = sent["Half"] + sent["Got"] + received["Lease"]
    return {
        "agents": agents,
        "trackers": options.trackers,
        "tls": options.tls,
        "redis": bool(options.redis),
        "layers": options.layers,
        "chunks": chunks,
        "rollouts": options.rollouts,
        "seconds": round(seconds, 2),
        "join_wait": _spread(seen, "joins"),
        "ask_wait": _spread(seen, "asks"),
        "ping_wait": _spread(seen, "pings"),
        "driver_lag": round(max(one["driver_lag"] for one in seen), 3),
        "announces": messages_in,
        "announces_per_second": round(messages_in / seconds),
        "tracker_cpu_seconds": round(cpu, 2),
        "tracker_cpu_share_of_a_core": round(cpu / seconds, 3),
        "tracker_cpu_seconds_per_1000_agents": round(cpu / agents * 1000 / options.rollouts, 3),
        "tracker_cpu_us_per_announce": round(cpu / messages_in * 1e6, 1),
        "tracker_cpu_us_per_announce_and_ping": round(cpu / (messages_in + pings) * 1e6, 1),
        "idle_cpu_per_1000_agents": None if idle_cpu is None else round(idle_cpu / agents * 1000, 4),
        "opening_seconds": round(opening, 2),
        "opening_cpu_ms_per_agent": round((opened.cpu - empty.cpu) / agents * 1e3, 3),
        "tracker_rss_mib": round(after.rss / (1 << 20), 1),
        "tracker_peak_rss_mib": round(after.peak / (1 << 20), 1),
        "empty_tracker_rss_mib": round(empty.rss / (1 << 20), 1),
        "tracker_peak_kib_per_agent": round((after.peak - empty.rss) / agents / 1024, 1),
        "messages_per_agent": round((messages_in + messages_out - per_chunk) / agents / options.rollouts, 2),
        "messages_per_chunk": round(per_chunk / chunks, 2),
        "pings": pings,
        "pongs": pongs,
        "driver_cpu_seconds": round(driver_cpu, 2),
        "sent": dict(sent),
        "received": dict(received),
        "load": os.getloadavg(),
    }


def _spread(seen: list[dict[str, Any]], what: str) -> dict[str, float]:
    waits = sorted(wait for one in seen for wait in one[what])
    if not waits:
        return {}
    at = {"p50": waits[len(waits) // 2], "p99": waits[int(len(waits) * 0.99)], "most": waits[-1]}
    return {name: round(wait, 4) for name, wait in at.items()}


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the tracker did not start")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--chunks", type=int, default=52, help="of each layer")
    parser.add_argument("--rollouts", type=int, default=1, help="images, one after the other")
    parser.add_argument("--seconds", type=float, default=15.0, help="that reading an image from upstream is to take")
    parser.add_argument("--lag", type=float, default=0.1, help="share of that within which all have what one has read")
    parser.add_argument("--rate", type=float, default=0.0, help="starts per second; 0: all at once")
    parser.add_argument("--trackers", type=int, default=1)
    parser.add_argument("--redis", default="", help="URL; needed for several trackers")
    parser.add_argument("--tls", action="store_true", help="certificates and TLS")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds of quiet before the rollout, for their CPU")
    parser.add_argument("--processes", type=int, default=1, help="that play the agents")
    parser.add_argument("--profile", type=Path, help="a file for py-spy's flame graph of the first tracker")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def main() -> None:
    options = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.agents + 100 > hard:
        raise SystemExit(f"can't measure: {options.agents} sessions need more than {hard} open files")
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="p2pdist-load-", dir=shm if shm.is_dir() else None) as name:
        trackers = Trackers(options, Path(name))
        try:
            drivers = Drivers(options, trackers)
            try:
                result = measure(options, trackers, drivers)
            finally:
                drivers.stop()
        finally:
            trackers.stop()
            sys.stderr.write(trackers.said())
    most = max(result[wait].get("most", 0.0) for wait in ("join_wait", "ask_wait", "ping_wait"))
    if options.json:
        print(json.dumps({**result, "goal_seconds": GOAL}))
    else:
        for key, value in result.items():
            print(f"{key:38} {value}")
    raise SystemExit(most > GOAL)


if __name__ == "__main__":
    main()
