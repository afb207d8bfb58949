#!/usr/bin/env python3
"""TLS on against TLS off: one pair of agents hands a blob on over unshaped loopback, both ways in turn in one run.

    bench/tls.py                      256 MiB, 3 runs each, medians
    bench/tls.py --json               one object: ratio (TLS / plain, of throughput), MiB/s

Exit status 1 when the ratio is below 0.5, 2 if it can't run here. Needs docker-registry; no root, no network but
127.0.0.1. Data lies in /dev/shm, so that no disk is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import pair
import warm
from lab.process import LabError, Process

GOAL = 0.5
MIB = 1 << 20


class Encrypted(pair.Bench):
    """The same with certificates: a second tracker, and agents that enrol there."""

    def __init__(self, plain: pair.Bench, stack: ExitStack, directory: Path) -> None:
        self.directory, self.size, self.digest = directory, plain.size, plain.digest
        self._stack, self._registry, self._count = stack, plain._registry, 100
        (self._tracker,) = warm._free_ports(1)
        program = str(Path(sys.executable).with_name("p2pdist-tracker"))
        data = ["--data", str(directory / "tracker")]
        made = subprocess.run([program, "token", "create", *data], check=True, capture_output=True, text=True)
        self._token = made.stdout.strip()
        self._start("encrypted", [program, *data, "--port", str(self._tracker)], self._tracker)

    @contextmanager
    def agent(self) -> Iterator[pair.Agent]:
        self._count += 1
        home = self.directory / f"agent{self._count}"
        home.mkdir()
        mirror, peer = warm._free_ports(2)
        config = warm._agent_config(home, self._registry, self._tracker, mirror, peer)
        text = config.read_text().replace("insecure = true", f'token = "{self._token}"')
        config.write_text(text.replace("http://127.0.0.1:" + str(self._tracker), f"https://127.0.0.1:{self._tracker}"))
        argv = [str(Path(sys.executable).with_name("p2pdist")), "agent", "--config", str(config)]
        process = Process(f"agent{self._count}", argv, home / "log")
        try:
            warm._wait_for(mirror)
            path = f"/v2/127.0.0.1__{self._registry}/{warm.REPOSITORY}/blobs/{self.digest}"
            yield pair.Agent(process, mirror, path)
        finally:
            process.stop()
            shutil.rmtree(home, ignore_errors=True)


def measure(directory: Path, size: int, runs: int) -> dict[str, object]:
    """Throughput in MiB/s."""
    with ExitStack() as stack:
        plain = pair.Bench(stack, directory, size)
        encrypted = Encrypted(plain, stack, directory)
        seconds: dict[str, list[float]] = {"plain": [], "tls": []}
        for _ in range(runs):
            seconds["plain"].append(pair.swarm(plain, 1)[0])
            seconds["tls"].append(pair.swarm(encrypted, 1)[0])
        speed = {name: size / MIB / statistics.median(values) for name, values in seconds.items()}
        return {
            "ratio": speed["tls"] / speed["plain"],
            "goal": GOAL,
            "mib": size // MIB,
            "mib_per_second": speed,
            "seconds": seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shm = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="p2pdist-tls-", dir=shm if shm.is_dir() else None))
    try:
        result = measure(directory, options.size * MIB, options.runs)
    except (warm.BenchError, LabError, OSError) as error:
        print(f"can't measure: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    speed = result["mib_per_second"]
    if options.json:
        print(json.dumps(result))
    else:
        print(f"plain {speed['plain']:.0f} MiB/s, TLS {speed['tls']:.0f} MiB/s: {result['ratio']:.2f} (goal: {GOAL:g})")
    raise SystemExit(float(result["ratio"]) < GOAL)


if __name__ == "__main__":
    main()
