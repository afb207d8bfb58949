"""A real redis-server of Debian's package, on a port and in a directory of its own, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path


def free_port() -> int:
    """Below 55,536: a Redis in cluster mode listens 10,000 above its port, too."""
    while True:
        port = random.randrange(12_000, 22_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """Synchronous: starting takes a few hundredths of a second. `options` as on redis-server's command line."""

    def __init__(self, directory: Path, *options: str, arguments: list[str] | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self._command = ["redis-server", *(arguments or []), "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += (
            ["--dir", str(directory), *options] if arguments else ["--dir", str(directory), "--save", "", *options]
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "log").read_text())
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: whatever it had in memory is lost, unless its options say otherwise."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """It answers nobody, and closes nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(20)
