"""p2pdist's own programs as they are installed: `p2pdist agent --config` and `p2pdist-tracker --config` in a host."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.lab import Lab
from lab.net import Host
from lab.process import LabError, Process

MIRROR_PORT = 5050
PEER_PORT = 5051
TRACKER_PORT = 7070
Tables = Mapping[str, Mapping[str, object]]


class Tracker:
    """A tracker; `extra` are further tables of its configuration file ("" for what stands in none).

    `tls`: a cluster as it is by default, with certificates; `token` lets agents in.
    """

    def __init__(self, lab: Lab, host: Host, *, extra: Tables | None = None, tls: bool = False) -> None:
        self.host = host
        self.url = f"{'https' if tls else 'http'}://{host.address}:{TRACKER_PORT}"
        self.token = ""
        self._lab = lab
        tables: dict[str, dict[str, object]] = {"": {"host": "0.0.0.0", "port": TRACKER_PORT, "insecure": not tls}}
        if tls:
            data = str(lab.path(f"data-{host.name}"))
            tables[""]["data_directory"] = data
            command = [program("p2pdist-tracker"), "token", "create", "--data", data]
            self.token = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        self._config = lab.directory / f"{host.name}.toml"
        self._config.write_text(toml(merge(tables, extra or {})))
        self.process = self._start()

    def agents(self) -> int:
        """How many agents have a session with it now."""

        def ask() -> int:
            unchecked = ssl._create_unverified_context() if self.token else None  # only a number is asked for
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5, context=unchecked) as answer:
                return int(json.load(answer)["nodes"])

        return self.host.call(ask)

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        if not self.process.running:
            self.process = self._start()

    def _start(self) -> Process:
        process = self._lab.start(
            self.host.name, [program("p2pdist-tracker"), "--config", str(self._config)], self.host
        )
        self._lab.wait_port(process, self.host, TRACKER_PORT)
        return process


class Agent:
    """The agent of one host. `registries`: name as images spell it -> URL; `token`: where the cluster is closed."""

    def __init__(
        self,
        lab: Lab,
        host: Host,
        *,
        trackers: Sequence[str],
        registries: Mapping[str, str],
        extra: Tables | None = None,
        token: str = "",
    ) -> None:
        self.host = host
        self.url = f"http://127.0.0.1:{MIRROR_PORT}"
        self.data = lab.path("agents", host.name)
        self._lab = lab
        tables: dict[str, dict[str, object]] = {
            "node": {"name": host.name, "data_dir": str(self.data)},
            "mirror": {"port": MIRROR_PORT},
            "peer": {"port": PEER_PORT},
            "tracker": {"urls": list(trackers)},
            "cluster": {"token": token} if token else {"insecure": True},
        }
        rows = [{"name": name, "url": url} for name, url in registries.items()]
        self._config = lab.directory / f"agent-{host.name}.toml"
        self._config.write_text(toml(merge(tables, extra or {})) + toml_rows("registries", rows))
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        """As an operator does: SIGTERM."""
        self.process.stop(20.0)

    def restart(self) -> None:
        if not self.process.running:
            self.process = self._start()
            self.wait()

    def wait(self) -> None:
        """Until its mirror answers."""
        self._lab.wait_port(self.process, self.host, MIRROR_PORT, address="127.0.0.1", timeout=90.0)

    def status(self) -> dict[str, Any]:
        """What `p2pdist status` would show, straight from its admin socket."""
        return status_at(self.data / "admin.sock")

    def _start(self) -> Process:
        argv = [program("p2pdist"), "agent", "--config", str(self._config)]
        return self._lab.start(f"agent-{self.host.name}", argv, self.host)


def status_at(admin: Path) -> dict[str, Any]:
    """What the agent with this admin socket says of itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10.0)
        connection.connect(str(admin))
        connection.sendall(b"GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        answer: dict[str, Any] = json.load(response)
        return answer


def program(name: str) -> str:
    """The console script beside the interpreter that runs this."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise LabError(f"{name} is not installed beside {sys.executable}: install the project first")
    return str(path)


def merge(tables: Tables, extra: Tables) -> dict[str, dict[str, object]]:
    """`extra` wins, option by option."""
    names = [*tables, *(name for name in extra if name not in tables)]
    return {name: {**tables.get(name, {}), **extra.get(name, {})} for name in names}


def toml(tables: Tables) -> str:
    """Tables of strings, numbers, booleans and lists of them as TOML; "" is the top, and has to come first."""
    return "".join((f"[{name}]\n" if name else "") + f"{_lines(table)}\n" for name, table in tables.items())


def toml_rows(name: str, rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(f"[[{name}]]\n{_lines(row)}\n" for row in rows)


def _lines(table: Mapping[str, object]) -> str:
    # JSON's spelling of strings, numbers, booleans and lists is also TOML's.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
