#!/usr/bin/env python3
"""Peak resident memory of agents while a large blob passes: of the one that reads it from upstream, and of one that
gets it from that one.

    bench/rss.py                      a blob of 2 GiB, unshaped links, as JSON

Exit status 1 when a peak is above 120 MiB. Needs root, iproute2 and docker-registry, and three times the size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from lab.agents import Agent, Tracker
from lab.images import image
from lab.lab import Lab
from lab.net import need_root_and_iproute2
from lab.process import LabError, wait_until
from lab.pulls import collect, start_pull
from lab.registry import Registry
from lab.session import run_in_own_session

GOAL = 120 << 20  # bytes


def measure(lab: Lab, sizes: list[int]) -> list[dict[str, object]]:
    """Blobs of these sizes (bytes) one after the other, each through a first and then a second node."""
    registry = Registry(lab, lab.host("registry"))
    tracker = Tracker(lab, lab.host("tracker"))
    agents = [
        Agent(lab, lab.host(name), trackers=[tracker.url], registries={"docker.io": registry.url})
        for name in ("first", "second")
    ]
    for agent in agents:
        agent.wait()
    wait_until("the agents at the tracker", lambda: tracker.agents() == len(agents))
    rows: list[dict[str, object]] = []
    for number, size in enumerate(sizes):
        registry.push("bench/rss", f"v{number}", image(f"rss-{number}", [size]))
        before = [agent.process.usage().peak_rss for agent in agents]
        seconds = []
        for agent in agents:
            pull = {agent.host.name: start_pull(lab, agent.host, agent.url, "bench/rss", f"v{number}", keep=False)}
            begin = time.monotonic()
            while not collect(pull, 1.0):
                if time.monotonic() - begin > 60 + size / 10e6:
                    raise LabError(f"{agent.host.name} still pulls after {time.monotonic() - begin:.0f} s")
            outcome = pull[agent.host.name].outcome
            if outcome is None or outcome.error:
                raise LabError(f"{agent.host.name}: {outcome and outcome.error}")
            seconds.append(round(outcome.seconds, 2))
        peaks = [agent.process.usage().peak_rss for agent in agents]
        rows.append({"size": size, "idle_rss": before, "peak_rss": peaks, "seconds": seconds})
    if agents[1].status()["transfer"]["bytes_from_peers"] == 0:
        raise LabError("the second node got nothing from the first")
    return rows


def _main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=float, default=2048.0, help="MiB")
    options = p.parse_args()

    def run() -> int:
        with Lab() as lab:
            (row,) = measure(lab, [round(options.size * (1 << 20))])
        print(json.dumps({**row, "goal": GOAL, "load": os.getloadavg()}))
        peaks = row["peak_rss"]
        return 0 if isinstance(peaks, list) and max(peaks) <= GOAL else 1

    try:
        need_root_and_iproute2()
    except LabError as e:
        print(f"rss.py: {e}", file=sys.stderr)
        return 2
    return run_in_own_session(run)


if __name__ == "__main__":
    sys.exit(_main())
