#!/usr/bin/env python3
"""A warm pull: curl reads one blob from an agent that has it, and from docker-registry, side by side on one disk.

    bench/warm.py                     256 MiB, 5 pulls each in turn, medians
    bench/warm.py --json              one object: ratio (agent / registry, of throughput), seconds, MiB/s

Exit status 1 when the ratio is below 0.9, 2 if it can't run here. Needs docker-registry and curl; no root, no network
but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

GOAL = 0.9
MIB = 1 << 20
REPOSITORY = "bench/warm"


class BenchError(Exception):
    """It can't be measured; says why."""


def measure(directory: Path, size: int, pulls: int) -> dict[str, object]:
    """Pulls a blob of `size` bytes `pulls` times from each, in turn. Throughput in MiB/s, times in seconds."""
    with ExitStack() as stack:
        registry_port, tracker_port, mirror_port, peer_port = _free_ports(4)
        config = _registry_config(directory, registry_port)
        stack.enter_context(_program(["docker-registry", "serve", str(config)], directory / "registry.log"))
        _wait_for(registry_port)
        digest = _push(registry_port, size)
        beside = Path(sys.executable).parent
        config = directory / "tracker.toml"
        config.write_text(f'host = "127.0.0.1"\nport = {tracker_port}\ninsecure = true\n')
        tracker = [str(beside / "p2pdist-tracker"), "--config", str(config)]
        stack.enter_context(_program(tracker, directory / "tracker.log"))
        _wait_for(tracker_port)
        config = _agent_config(directory, registry_port, tracker_port, mirror_port, peer_port)
        agent = [str(beside / "p2pdist"), "agent", "--config", str(config)]
        stack.enter_context(_program(agent, directory / "agent.log"))
        _wait_for(mirror_port)
        urls = {
            "registry": f"http://127.0.0.1:{registry_port}/v2/{REPOSITORY}/blobs/{digest}",
            "agent": f"http://127.0.0.1:{mirror_port}/v2/127.0.0.1__{registry_port}/{REPOSITORY}/blobs/{digest}",
        }
        for way, url in urls.items():  # also warms the store and the page cache
            got = _digest_of(url)
            if got != digest:
                raise BenchError(f"{way} answers {got} for {digest}")
        seconds: dict[str, list[float]] = {"registry": [], "agent": []}
        for _ in range(pulls):
            for way, url in urls.items():
                seconds[way].append(_pull(url, size))
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "ratio": round(medians["registry"] / medians["agent"], 3),
        "goal": GOAL,
        "size": size,
        "mib_per_second": {way: round(size / MIB / median) for way, median in medians.items()},
        "seconds": {way: [round(one, 4) for one in times] for way, times in seconds.items()},
        "load": os.getloadavg(),
    }


def _registry_config(directory: Path, port: int) -> Path:
    config = directory / "registry.yml"
    tables = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    config.write_text(json.dumps(tables))  # YAML knows JSON
    return config


def _agent_config(directory: Path, registry: int, tracker: int, mirror: int, peer: int) -> Path:
    config = directory / "agent.toml"
    config.write_text(f"""\
[node]
data_dir = "{directory / "agent"}"
[mirror]
port = {mirror}
[peer]
host = "127.0.0.1"
port = {peer}
[tracker]
urls = ["http://127.0.0.1:{tracker}"]
[cluster]
insecure = true
[[registries]]
name = "127.0.0.1:{registry}"
url = "http://127.0.0.1:{registry}"
""")
    return config


def _push(port: int, size: int) -> str:
    """A random blob through the registry's own API; its digest."""
    piece = os.urandom(MIB)
    hasher = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        left = size
        while left:
            data = piece[:left]
            left -= len(data)
            yield data

    for data in pieces():
        hasher.update(data)
    digest = f"sha256:{hasher.hexdigest()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        target = urlsplit(answer.headers["Location"] or "")
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        connection.request("PUT", f"{target.path}?{target.query}&digest={digest}", body=pieces(), headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 201:
            raise BenchError(f"docker-registry does not take the blob: {answer.status}")
    finally:
        connection.close()
    return digest


def _pull(url: str, size: int) -> float:
    form = "%{time_total} %{size_download} %{http_code}"
    words = subprocess.run(
        ["curl", "-sS", "-o", "/dev/null", "-w", form, url], check=True, capture_output=True, text=True
    ).stdout.split()
    if words[1:] != [str(size), "200"]:
        raise BenchError(f"{url}: {' '.join(words)}")
    return float(words[0])


def _digest_of(url: str) -> str:
    with subprocess.Popen(["curl", "-sSf", url], stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        hasher = hashlib.file_digest(curl.stdout, "sha256")
    return f"sha256:{hasher.hexdigest()}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _program(argv: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield
        except (BenchError, subprocess.CalledProcessError) as error:
            tail = log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{error}\n{argv[0]} says: {tail}") from error
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(port: int, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchError(f"nothing listens on 127.0.0.1:{port}: {error}") from error
            time.sleep(0.05)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=256.0, help="MiB")
    parser.add_argument("--pulls", type=int, default=5, help="of each")
    parser.add_argument("--directory", type=Path, help="where the data of both goes (default: a temporary directory)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    missing = [program for program in ("docker-registry", "curl") if shutil.which(program) is None]
    if missing:
        print(f"warm.py: {' and '.join(missing)} not found", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="p2pdist-warm-", dir=options.directory) as directory:
            result = measure(Path(directory), round(options.size * MIB), options.pulls)
    except BenchError as error:
        print(f"warm.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result))
    else:
        print(f"MiB/s {result['mib_per_second']}, ratio {result['ratio']} (goal: at least {GOAL})")
    return 0 if float(str(result["ratio"])) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(_main())
