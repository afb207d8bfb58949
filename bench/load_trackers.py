"""The tracker processes under load, their Redis, and what they use."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pdist.pki import Authority

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
        self.authority = directory / "authority" if options.tls else None
        self.urls: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._redis: subprocess.Popen[bytes] | None = None
        Authority.keep(directory / "authority", time.time())
        environment = {
            **os.environ,
            "P2PDIST_TRACKER_INSECURE": str(not options.tls).lower(),
            "P2PDIST_TRACKER_LOG_LEVEL": "warning",
            "P2PDIST_TRACKER_AUTHORITY_DIRECTORY": str(directory / "authority"),
        }
        try:
            if options.redis:
                environment["P2PDIST_TRACKER_STATE_URL"] = (
                    options.redis if options.redis != "new" else self._new_redis()
                )
            program = str(Path(sys.executable).with_name("p2pdist-tracker"))
            for number in range(options.trackers):
                port = _free_port()
                argv = [program, "--data", str(directory / f"tracker{number}"), "--port", str(port)]
                with (directory / f"log{number}").open("wb") as log:
                    self._processes.append(subprocess.Popen(argv, stdout=log, stderr=log, env=environment))
                _wait_for(port, self._processes[-1])
                self.urls.append(f"{'https' if options.tls else 'http'}://127.0.0.1:{port}")
        except BaseException:
            self.stop()
            raise

    def _new_redis(self) -> str:
        port = _free_port()
        argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
        self._redis = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        _wait_for(port, self._redis)
        return f"redis://127.0.0.1:{port}"

    def usage(self) -> list[Usage]:
        """Of each tracker, in the order of the URLs."""
        return [usage(process.pid) for process in self._processes]

    @property
    def redis_cpu(self) -> float:
        return usage(self._redis.pid).cpu if self._redis is not None else 0.0

    def said(self) -> str:
        """Warnings and errors."""
        logs = sorted(self.directory.glob("log*"))
        return "".join(log.read_text(errors="replace")[-2000:] for log in logs)

    def stop(self) -> None:
        processes = [*self._processes, *([self._redis] if self._redis is not None else [])]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def cpu_of(each: Iterable[Usage]) -> float:
    return sum(one.cpu for one in each)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the tracker did not start")
