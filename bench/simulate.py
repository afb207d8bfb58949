"""Rollouts of 100 to 10,000 nodes in simulation: the shipped decisions over a modelled network.

    bench/simulate.py --nodes 1000                      all start together
    bench/simulate.py --nodes 1000 --spread 0.5         starts spread over half of the fluid limit (Poisson)
    bench/simulate.py --nodes 1000 --slow 0.1 --kill 0.05
    bench/simulate.py --calibrate                       the 12 nodes of bench/rollout.py, to compare with the lab

What decides is the product's own code: `tracker.swarms.Swarms` and `p2pdist.mesh.decide.Decisions`. Modelled are the
links (max-min fair shares, in steps of a tenth of a chunk time) and the latency of every message. Not modelled: TCP,
CPU, the daemon. Times are in seconds of the simulation.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulate_result import result as result_of
from simulate_run import Simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="MiB of the blob")
    parser.add_argument("--chunk", type=int, default=0, help="KiB of a chunk (default: the product's choice)")
    parser.add_argument("--rate", type=float, default=50.0, help="Mbit/s of every node's link")
    parser.add_argument("--upstream", type=float, default=1.0, help="the registry's rate as a multiple of a node's")
    parser.add_argument("--spread", type=float, default=0.0, help="starts spread over this share of the limit")
    parser.add_argument("--slow", type=float, default=0.0, help="share of slow nodes")
    parser.add_argument("--slow-rate", type=float, default=0.25, help="their rate")
    parser.add_argument("--kill", type=float, default=0.0, help="share of nodes that die on the way")
    parser.add_argument("--kill-tracker", type=float, default=0.0, help="the tracker dies at this share of the limit")
    parser.add_argument("--read-pause", type=float, default=0.0, help="seconds before each read without a tracker")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds of every message")
    parser.add_argument("--overhead", type=float, default=1.0, help="bytes on the wire per byte of a chunk")
    parser.add_argument("--tick", type=float, default=0.1, help="seconds between a node's ticks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calibrate", action="store_true", help="12 nodes with the lab's TCP/IP overhead")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.calibrate:
        options.nodes, options.overhead = 12, 1.045
    began = time.process_time()
    simulation = Simulation(options)
    simulation.run()
    result = result_of(simulation)
    result["cpu_seconds"] = round(time.process_time() - began, 1)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
