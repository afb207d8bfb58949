"""Debian's redis-server in a host, or on a port of this machine's loopback."""

from __future__ import annotations

from lab.lab import Lab
from lab.net import Host
from lab.process import Process

PORT = 6379


class Redis:
    """Keeps nothing on disk; `stop` and `restart` lose everything, as a crash of a memory-only one does."""

    def __init__(self, lab: Lab, host: Host, *, port: int = PORT) -> None:
        self.url = f"redis://{host.address}:{port}"
        self._lab = lab
        self._host = host
        self._port = port
        self.process = self._start()

    def stop(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        if not self.process.running:
            self.process = self._start()

    def _start(self) -> Process:
        directory = self._lab.path(f"redis-{self._host.name}")
        argv = ["redis-server", "--port", str(self._port), "--bind", "0.0.0.0", "--protected-mode", "no"]
        argv += ["--dir", str(directory), "--save", "", "--appendonly", "no"]
        process = self._lab.start(f"redis-{self._host.name}", argv, self._host)
        self._lab.wait_port(process, self._host, self._port)
        return process
