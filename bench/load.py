#!/usr/bin/env python3
"""Thousands of played agents against real tracker processes: the real protocol over real WebSockets, no data.

    bench/load.py --agents 2000                     one tracker, all agents pull an image of ten layers at once
    bench/load.py --agents 10000 --rate 1000        starts spread over ten seconds
    bench/load.py --agents 100 --rollouts 100 --chunks 1        ... and
    bench/load.py --agents 10000 --chunks 100       the same number of each message: what an announce costs by fleet
    bench/load.py --agents 2000 --tls               certificates and TLS 1.3, as by default in a cluster
    bench/load.py --agents 2000 --trackers 2 --redis new        two replicas and a Redis of their own (or its URL)

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
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from load_play import Plan, play
from load_trackers import Trackers, cpu_of, usage

GOAL = 1.0  # seconds that an announce may wait
PATIENCE = 900.0  # seconds for the opening of all sessions, and for one rollout
MIB = 1 << 20


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
        idle_cpu = (cpu_of(trackers.usage()) - cpu_of(opened)) / options.idle
    before, driver_cpu, redis_cpu, begun = trackers.usage(), drivers.usage(), trackers.redis_cpu, time.monotonic()
    seen: list[dict[str, Any]] = []
    for number in range(options.rollouts):
        seen += drivers.order(number)
    seconds = time.monotonic() - begun
    after, driver_cpu = trackers.usage(), drivers.usage() - driver_cpu
    sent: Counter[str] = sum((one["sent"] for one in seen), Counter())
    received: Counter[str] = sum((one["received"] for one in seen), Counter())
    pings, pongs = sent.pop("Ping", 0), received.pop("Pong", 0)
    messages_in, messages_out = sum(sent.values()), sum(received.values())
    cpu = cpu_of(after) - cpu_of(before)
    chunks = options.rollouts * options.layers * options.chunks
    grown = sum(late.peak - none.rss for none, late in zip(empty, after, strict=True))
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
        "opening_cpu_ms_per_agent": round((cpu_of(opened) - cpu_of(empty)) / agents * 1e3, 3),
        "each_tracker": [
            {
                "cpu_seconds": round(late.cpu - early.cpu, 2),
                "empty_mib": round(none.rss / MIB, 1),
                "peak_mib": round(late.peak / MIB, 1),
            }
            for none, early, late in zip(empty, before, after, strict=True)
        ],
        "tracker_kib_per_agent": round(grown / agents / 1024, 1),
        "redis_cpu_seconds": round(trackers.redis_cpu - redis_cpu, 2),
        "messages_per_agent": round((messages_in + messages_out - per_chunk) / agents / options.rollouts, 2),
        "messages_per_chunk": round(per_chunk / chunks, 2),
        "pings": pings,
        "frames_per_announce": round((sum(one["frames"] for one in seen) - pings) / messages_in, 3),
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
    parser.add_argument("--redis", default="", help="URL, or `new` for one of its own; needed for several trackers")
    parser.add_argument("--tls", action="store_true", help="certificates and TLS")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds of quiet before the rollout, for their CPU")
    parser.add_argument("--processes", type=int, default=1, help="that play the agents")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    if options.trackers > 1 and not options.redis:
        parser.error("several trackers need --redis")
    return options


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # trackers and drivers are to end with us
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
