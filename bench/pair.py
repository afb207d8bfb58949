#!/usr/bin/env python3
"""Fast links: how fast agents hand a blob on over unshaped loopback, against plain aiohttp in the same run.

    bench/pair.py                     512 MiB: one agent has it and one pulls; then one has it and three pull at once
    bench/pair.py --json              one object: ratio (pair / plain, of throughput), MiB/s, CPU seconds per GiB
    bench/pair.py --profile DIR       a perf profile of both agents while the pair moves the blob (needs perf)

Plain is one aiohttp server process that sends the same blob from the same disk and one aiohttp client process that
reads and drops it, both on uvloop. An agent's pull ends when the whole digest is proved and stored. Data lies in
/dev/shm, so that no disk is measured. Exit status 1 when the pair's ratio is below 0.5, 2 if it can't run here. Needs
docker-registry; no root, no network but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import warm
from lab.process import LabError, Process
from lab.session import run_in_own_session

GOAL = 0.5
MIB = 1 << 20
GIB = 1 << 30
_SERVER = """\
import sys, asyncio, uvloop
from aiohttp import web
async def main():
    app = web.Application()
    app.router.add_get("/", lambda request: web.FileResponse(sys.argv[1], chunk_size=262144))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    await asyncio.Event().wait()
uvloop.run(main())
"""
_CLIENT = """\
import sys, time, aiohttp, uvloop
async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(int(sys.argv[2])):
            begin, got = time.monotonic(), 0
            async with session.get(sys.argv[1]) as answer:
                async for data in answer.content.iter_any():
                    got += len(data)
            print(got, time.monotonic() - begin, flush=True)
uvloop.run(main())
"""


class Bench:
    """One registry and one tracker; agents come and go. Sizes in bytes, times in seconds."""

    def __init__(self, stack: ExitStack, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        self._stack = stack
        self._count = 0
        self._registry, self._tracker = warm._free_ports(2)
        config = warm._registry_config(directory, self._registry)
        self._start("registry", ["docker-registry", "serve", str(config)], self._registry)
        config = directory / "tracker.toml"
        config.write_text(f'host = "127.0.0.1"\nport = {self._tracker}\ninsecure = true\n')
        self._start("tracker", [str(Path(sys.executable).with_name("p2pdist-tracker")), "--config", str(config)])
        warm._wait_for(self._tracker)
        self.digest = warm._push(self._registry, size)

    def _start(self, name: str, argv: Sequence[str], port: int | None = None) -> Process:
        process = Process(name, argv, self.directory / f"{name}.log")
        self._stack.callback(process.stop)
        if port is not None:
            warm._wait_for(port)
        return process

    @contextmanager
    def agent(self) -> Iterator[Agent]:
        """A new agent with nothing in its store."""
        self._count += 1
        home = self.directory / f"agent{self._count}"
        home.mkdir()
        mirror, peer = warm._free_ports(2)
        config = warm._agent_config(home, self._registry, self._tracker, mirror, peer)
        argv = [str(Path(sys.executable).with_name("p2pdist")), "agent", "--config", str(config)]
        process = Process(f"agent{self._count}", argv, home / "log")
        try:
            warm._wait_for(mirror)
            yield Agent(process, mirror, f"/v2/127.0.0.1__{self._registry}/{warm.REPOSITORY}/blobs/{self.digest}")
        finally:
            process.stop()
            shutil.rmtree(home, ignore_errors=True)

    def plain(self, runs: int) -> tuple[list[float], float]:
        """Seconds of each plain transfer of the blob, and CPU seconds per GiB of both sides."""
        blob = self.directory / "blob"
        if not blob.exists():
            with blob.open("wb") as file:
                subprocess.run(
                    ["curl", "-sSf", f"http://127.0.0.1:{self._registry}/v2/{warm.REPOSITORY}/blobs/{self.digest}"],
                    stdout=file,
                    check=True,
                )
        (port,) = warm._free_ports(1)
        server = Process("plain", [sys.executable, "-c", _SERVER, str(blob), str(port)], self.directory / "plain.log")
        try:
            warm._wait_for(port)
            before = os.times()
            words = subprocess.run(
                [sys.executable, "-c", _CLIENT, f"http://127.0.0.1:{port}/", str(runs)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            after = os.times()
            cpu = server.usage().cpu + after.children_user + after.children_system
            cpu -= before.children_user + before.children_system
        finally:
            server.stop()
        if set(words[::2]) != {str(self.size)}:
            raise warm.BenchError(f"the plain client got {words[::2]} bytes, not {self.size}")
        return [float(word) for word in words[1::2]], cpu / (runs * self.size / GIB)


class Agent:
    """A running agent."""

    def __init__(self, process: Process, mirror: int, path: str) -> None:
        self.process = process
        self._mirror, self._path = mirror, path

    def pull(self, size: int) -> float:
        """Seconds until the whole blob is proved: only then its last byte is given out."""
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._mirror, timeout=300)
        try:
            connection.request("GET", self._path, headers={"Range": f"bytes={size - 1}-"})
            answer = connection.getresponse()
            if answer.status != 206 or len(answer.read()) != 1:
                raise warm.BenchError(f"the agent answers {answer.status}: {self.process.tail()}")
        finally:
            connection.close()
        return time.monotonic() - begin


def swarm(bench: Bench, pullers: int, profile: Path | None = None) -> tuple[float, float]:
    """One new agent gets the blob, then `pullers` new ones pull it: seconds of the last, CPU seconds per GiB moved."""
    with ExitStack() as stack:
        holder = stack.enter_context(bench.agent())
        holder.pull(bench.size)
        others = [stack.enter_context(bench.agent()) for _ in range(pullers)]
        agents = [holder, *others]
        time.sleep(1.0)  # sessions with the tracker
        before = sum(agent.process.usage().cpu for agent in agents)
        watch = _perf(profile, agents) if profile is not None else None
        with ThreadPoolExecutor(pullers) as pool:
            begin = time.monotonic()
            list(pool.map(lambda agent: agent.pull(bench.size), others))
            seconds = time.monotonic() - begin
        cpu = sum(agent.process.usage().cpu for agent in agents) - before
        if watch is not None:
            watch.terminate()
            watch.wait()
        return seconds, cpu / (pullers * bench.size / GIB)


def _perf(directory: Path, agents: Sequence[Agent]) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    pids = ",".join(str(agent.process.pid) for agent in agents)
    argv = ["perf", "record", "-F", "499", "-g", "-o", str(directory / "perf.data"), "-p", pids]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(directory: Path, size: int, runs: int, profile: Path | None) -> dict[str, object]:
    """Plain, pair and swarm in turn, `runs` times; medians."""
    with ExitStack() as stack:
        bench = Bench(stack, directory, size)
        plain: list[float] = []
        plain_cpu: list[float] = []
        pair: list[tuple[float, float]] = []
        four: list[tuple[float, float]] = []
        for _ in range(runs):
            times, cpu = bench.plain(3)
            plain.append(statistics.median(times))
            plain_cpu.append(cpu)
            pair.append(swarm(bench, 1))
            four.append(swarm(bench, 3))
        if profile is not None:
            swarm(bench, 1, profile)
    seconds = {
        "plain": statistics.median(plain),
        "pair": statistics.median(one for one, _ in pair),
        "four": statistics.median(one for one, _ in four),
    }
    ratios = [one / each[0] for one, each in zip(plain, pair, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
        "goal": GOAL,
        "four_ratio": round(3 * seconds["plain"] / seconds["four"], 3),
        "size": size,
        "mib_per_second": {way: round((3 if way == "four" else 1) * size / MIB / one) for way, one in seconds.items()},
        "cpu_seconds_per_gib": {
            "plain": round(statistics.median(plain_cpu), 2),
            "pair": round(statistics.median(cpu for _, cpu in pair), 2),
            "four": round(statistics.median(cpu for _, cpu in four), 2),
        },
        "load": os.getloadavg(),
    }


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=512.0, help="MiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", type=Path, metavar="DIR", help="one more pair under perf, its data into DIR")
    parser.add_argument("--directory", type=Path, help="where the data goes (default: /dev/shm)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    needed = ["docker-registry", "curl", *(["perf"] if options.profile else [])]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        print(f"pair.py: {' and '.join(missing)} not found", file=sys.stderr)
        return 2
    return run_in_own_session(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    try:
        where = options.directory or Path("/dev/shm")
        with tempfile.TemporaryDirectory(prefix="p2pdist-pair-", dir=where) as directory:
            result = measure(Path(directory), round(options.size * MIB), options.runs, options.profile)
    except (warm.BenchError, LabError, subprocess.CalledProcessError) as error:
        print(f"pair.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        print(f"MiB/s {result['mib_per_second']}, CPU s/GiB {result['cpu_seconds_per_gib']}")
        print(f"pair / plain {result['ratio']} (goal: at least {GOAL}), four agents together {result['four_ratio']}")
    return 0 if float(str(result["ratio"])) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(_main())
