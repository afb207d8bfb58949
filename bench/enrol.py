#!/usr/bin/env python3
"""Enrolment: so many nodes become members of a new cluster at once, then all renew their certificates at once.

    bench/enrol.py                    500 nodes against one tracker process, on loopback
    bench/enrol.py --json             one object: seconds of both, goal

Every node has a key, TLS contexts and connections of its own, as an agent has; all of them run in this one process, so
its CPU counts too. Exit status 1 when both together take 30 s or more. No root, no network but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.enrol import Enrolment
from p2pdist.pki import JoinToken, TlsCredentials

GOAL = 30.0  # seconds


async def measure(directory: Path, url: str, token: JoinToken, count: int) -> dict[str, float]:
    """Seconds until all are members, and until all have another certificate."""
    nodes = [
        Enrolment([url], Ed25519PrivateKey.generate(), directory / str(number), token, TlsCredentials())
        for number in range(count)
    ]
    begin, cpu = time.monotonic(), time.process_time()
    tasks = [asyncio.ensure_future(node.run()) for node in nodes]
    await asyncio.gather(*(node.member.wait() for node in nodes))
    enrolled = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    before = [node.credentials.certificate for node in nodes]
    storm = time.monotonic()
    await asyncio.gather(*(node._until_done(node._renew, "not renewed") for node in nodes))
    end = time.monotonic()
    if any(node.credentials.certificate == old for node, old in zip(nodes, before, strict=True)):
        raise SystemExit("a certificate was not renewed")
    return {
        "enrolment_seconds": enrolled - begin,
        "renewal_seconds": end - storm,
        "nodes_cpu_ms_per_node": (time.process_time() - cpu) / count * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None  # 500 nodes have 500 disks; here they would share one
    with tempfile.TemporaryDirectory(prefix="p2pdist-enrol-", dir=shm) as name:
        directory = Path(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = [str(Path(sys.executable).with_name("p2pdist-tracker"))]
        data = ["--data", str(directory / "tracker")]
        made = subprocess.run([*program, "token", "create", *data], check=True, capture_output=True, text=True)
        with (directory / "log").open("wb") as log:
            tracker = subprocess.Popen([*program, *data, "--port", str(port)], stdout=log, stderr=log)
        try:
            _wait_for(port)
            token = JoinToken.parse(made.stdout)
            began = _cpu(tracker.pid)
            result = uvloop.run(measure(directory, f"https://127.0.0.1:{port}", token, options.nodes))
            result["tracker_cpu_ms_per_node"] = (_cpu(tracker.pid) - began) / options.nodes * 1e3
        finally:
            tracker.terminate()
            tracker.wait(30)
    total = result["enrolment_seconds"] + result["renewal_seconds"]
    if options.json:
        print(json.dumps({"nodes": options.nodes, "goal_seconds": GOAL, "seconds": total, **result}))
    else:
        print(
            f"{options.nodes} nodes: enrolled in {result['enrolment_seconds']:.1f} s, all renewed in "
            f"{result['renewal_seconds']:.1f} s; {total:.1f} s together (goal: under {GOAL:g} s)\n"
            f"CPU of both per node: {result['tracker_cpu_ms_per_node']:.1f} ms at the tracker, "
            f"{result['nodes_cpu_ms_per_node']:.1f} ms at the node"
        )
    raise SystemExit(total >= GOAL)


def _cpu(pid: int) -> float:
    """Seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the tracker did not start")


if __name__ == "__main__":
    main()
