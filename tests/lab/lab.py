"""One laboratory run: the network, the processes and the directory, all under one guard."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from lab.guard import Guard
from lab.net import Host, Network, need_root_and_iproute2
from lab.process import LabError, Process, wait_until


def _environment() -> dict[str, str]:
    """Ours, without what would configure the programs behind the laboratory's back."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("P2PDIST_") and not key.lower().endswith("_proxy")
    }


class Lab:
    """Leaving the context takes everything away. `base`: where the run's directory is made (default: temp folder);
    `logs`: a directory to which every program's log is copied at the end.
    """

    def __init__(self, base: Path | None = None, *, logs: Path | None = None) -> None:
        need_root_and_iproute2()
        self._keep = logs
        self.guard = Guard()
        prefix = f"lab{os.getpid():x}{secrets.token_hex(2)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=base))
        self.guard.directory(self.directory)
        self.processes: list[Process] = []
        self.network = Network(self.guard, prefix)

    def host(self, name: str, *, up: float | None = None, down: float | None = None, bridge: str = "br0") -> Host:
        return self.network.host(name, up=up, down=down, bridge=bridge)

    def path(self, *parts: str) -> Path:
        """A directory of this run, made if it is not there."""
        path = self.directory.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def start(
        self,
        name: str,
        argv: Sequence[str],
        host: Host | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
    ) -> Process:
        """Starts `argv` in `host`; `env` is added to ours. Its log: `<directory>/logs/<name>.log`."""
        log = self.path("logs") / f"{name}.log"
        full = host.inside(argv) if host is not None else list(argv)
        process = Process(name, full, log, env={**_environment(), **(env or {})}, cwd=cwd, pipes=pipes)
        self.guard.process(process.pid)
        self.processes.append(process)
        return process

    def ask(self, argv: Sequence[str], host: Host | None = None, *, timeout: float = 30.0) -> str:
        """Runs a command that answers at once and returns its stdout. `LabError` with its stderr when it fails."""
        full = host.inside(argv) if host is not None else list(argv)
        # Some of what is asked for may be no text, like a layer; the caller sees that it isn't what was meant.
        done = subprocess.run(
            full, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait_port(
        self, process: Process, host: Host, port: int, *, address: str | None = None, timeout: float = 20.0
    ) -> None:
        """Until `process` accepts connections. `LabError` with the end of its log when it ends or takes too long."""
        target = (address or host.address, port)

        def accepts() -> bool:
            if not process.running:
                raise LabError(f"{process.name} ended with status {process.status}: {process.tail()}")
            try:
                host.call(lambda: socket.create_connection(target, timeout=1.0).close())
            except OSError:
                return False
            return True

        try:
            wait_until(f"{process.name} on port {port}", accepts, timeout)
        except LabError as e:
            raise LabError(f"{e}; its log: {process.tail()}") from None

    def close(self) -> None:
        """Daemons first get SIGTERM so that they put their own things away; the guard takes what is left."""
        try:
            for process in reversed(self.processes):
                if process.running:
                    process.stop(5.0)
                process.kill()  # closes its pipes
            self.network.close()
            if self._keep is not None:
                shutil.copytree(self.path("logs"), self._keep, dirs_exist_ok=True)
        finally:
            self.guard.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
