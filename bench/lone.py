#!/usr/bin/env python3
"""One agent alone: a cold pull through it against the same pull straight from the registry, both by skopeo.

    bench/lone.py                     256 MiB in 4 layers, the registry's link at 200 Mbit/s, medians of 3, as JSON

Exit status 1 when the ratio is above 1.10. Needs root, iproute2, docker-registry and skopeo.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from lab.agents import Agent, Tracker
from lab.daemons import Skopeo, wait_for
from lab.images import image
from lab.lab import Lab
from lab.net import need_root_and_iproute2
from lab.process import LabError, wait_until
from lab.registry import Registry
from lab.session import run_in_own_session

GOAL = 1.10
NAME = "registry.test:5000"


def measure(lab: Lab, *, size: int, layers: int, rate: float, runs: int) -> dict[str, object]:
    """Alternates direct pulls and pulls through a cold agent. Sizes in bytes, `rate` in Mbit/s, times in seconds."""
    registry = Registry(lab, lab.host("registry", up=rate, down=rate))
    tracker = Tracker(lab, lab.host("tracker"))
    host = lab.host("node")
    host.names({NAME.split(":", maxsplit=1)[0]: registry.host.address})
    agent = Agent(lab, host, trackers=[tracker.url], registries={NAME: registry.url})
    agent.wait()
    wait_until("the agent at the tracker", lambda: tracker.agents() == 1)
    mirror = f'[[registry]]\nprefix = "{NAME}"\nlocation = "{NAME}"\n'
    mirror += f'[[registry.mirror]]\nlocation = "127.0.0.1:5050/{NAME.replace(":", "__")}"\ninsecure = true\n'
    seconds: dict[str, list[float]] = {"direct": [], "agent": []}
    for number in range(runs):
        # A new image each time: neither side has seen a byte of it.
        what = image(f"lone-{number}", [size // layers] * layers)
        registry.push("bench/lone", f"v{number}", what)
        for way, registries in (("direct", ""), ("agent", mirror)):
            skopeo = Skopeo(lab, host, registries=registries, registry=NAME)
            begin = time.monotonic()
            wait_for([skopeo.start("bench/lone", f"v{number}")], 600)
            seconds[way].append(time.monotonic() - begin)
            held = skopeo.holds("bench/lone", f"v{number}")
            missing = [
                one.digest for one in what.blobs if held.get(one.digest.split(":")[1]) != one.digest.split(":")[1]
            ]
            if missing:
                raise LabError(f"{way}: {missing} are not what they should be")
    from_agent = sum(agent.status()["transfer"][key] for key in ("bytes_from_upstream", "bytes_from_peers"))
    if from_agent < runs * size:
        raise LabError(f"only {from_agent} bytes went through the agent: skopeo did not use it")
    direct, through = statistics.median(seconds["direct"]), statistics.median(seconds["agent"])
    return {
        "ratio": round(through / direct, 4),
        "seconds_direct": round(direct, 3),
        "seconds_agent": round(through, 3),
        "limit": round(size * 8e-6 / rate, 3),
        "size": size,
        "layers": layers,
        "rate": rate,
        "runs": seconds,
        "peak_rss": agent.process.usage().peak_rss,
        "load": os.getloadavg(),
    }


def _main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=float, default=256.0, help="MiB")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--rate", type=float, default=200.0, help="Mbit/s")
    p.add_argument("--runs", type=int, default=3)
    options = p.parse_args()

    def run() -> int:
        with Lab() as lab:
            size = round(options.size * (1 << 20))
            result = measure(lab, size=size, layers=options.layers, rate=options.rate, runs=options.runs)
        print(json.dumps({**result, "goal": GOAL}))
        return 0 if float(str(result["ratio"])) <= GOAL else 1

    try:
        need_root_and_iproute2()
    except LabError as e:
        print(f"lone.py: {e}", file=sys.stderr)
        return 2
    return run_in_own_session(run)


if __name__ == "__main__":
    sys.exit(_main())
