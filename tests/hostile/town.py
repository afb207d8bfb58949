"""A cluster of real processes on loopback addresses, one tracker and some agents, with a fake registry upstream.

The registry runs in a thread of its own, so that the cluster outlives a test's event loop.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from lab.agents import status_at
from support.faults import Call
from support.images import Image
from support.registry import FakeRegistry, noise

from p2pdist.pki import Authority


class Upstream:
    """A fake registry in a thread; its blobs leave at `rate` bytes a second over all connections, None: at once."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self.rate: float | None = None
        self._free = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._call(self.registry.__aenter__())
        self.registry.fail(Call(self._slowly), path="/blobs/", method="GET")

    async def _slowly(self, request: web.Request) -> None:
        if self.rate is None:
            return
        size = len(next(b for d, b in self.registry.blobs.items() if str(d) in request.path))
        asked = request.http_range
        length = (asked.stop or size) - (asked.start or 0)
        now = time.monotonic()
        self._free = max(now, self._free) + length / self.rate
        await asyncio.sleep(self._free - now)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self._call(self.registry.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


LAUNCHER = """
import os, signal, sys
from p2pdist.cli import main
children = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        log = os.open(name + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["p2pdist", "agent", "--config", name + ".toml"]
        main()
        os._exit(0)
    children.append(child)
print(*children, flush=True)
sys.stdin.read()  # until the test is over: no number of a child's means another process meanwhile
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""  # the programs are imported once: nine agents are up in the time of two


class Program:
    """One process; what it logs is in a file."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid

    @property
    def alive(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def rss(self) -> int:
        """Bytes of memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        end = time.monotonic() + 20
        while self.alive:
            os.kill(self.pid, signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
            time.sleep(0.5)


class AgentProgram(Program):
    """`p2pdist agent`, run by the launcher under `name`."""

    def __init__(self, town: Town, number: int) -> None:
        self.host = f"127.{town.net}.1.{number}"
        self.data = town.directory / f"agent-{number}"
        registry = town.upstream.registry
        self.data.with_suffix(".toml").write_text(
            f'[node]\nname = "agent-{number}"\ndata_dir = "{self.data}"\nshutdown_seconds = 0.5\n'
            f'[mirror]\nhost = "{self.host}"\nport = 5050\nserve = "proved"\n'
            f'decide_deadline_seconds = 100\n[peer]\nhost = "{self.host}"\nport = 5051\n'
            f'advertise_host = "{self.host}"\n[tracker]\nurls = ["{town.tracker.url}"]\n'
            f'[cluster]\ntoken = "{town.token}"\n[[registries]]\nname = "{registry.name}"\nurl = "{registry.url}"\n'
            "stall_timeout_seconds = 30\n"
        )
        super().__init__(f"agent-{number}", 0)  # "proved": on a slow machine too no daemon is sent to the upstream

    def status(self) -> dict[str, Any]:
        """What `p2pdist status` shows; empty while it starts."""
        try:
            return status_at(self.data / "admin.sock")
        except (FileNotFoundError, ConnectionError):
            return {}

    @property
    def node(self) -> bytes:
        return bytes.fromhex(self.status()["node"]["id"])

    def get(self, path: str) -> tuple[int, bytes]:
        """One request of this node's daemon."""
        connection = http.client.HTTPConnection(self.host, 5050, timeout=250)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Town:
    """`agents` real agents and a tracker, all members, all connected when it is made. Has what `Rogue` needs."""

    def __init__(self, directory: Path, agents: int) -> None:
        self.directory = directory
        self.net = os.getpid() % 200 + 20  # test runs beside each other don't meet
        self.upstream = Upstream()
        self.programs: list[Program] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.agents: list[AgentProgram] = []
        self.made = 0  # images
        try:
            self._start(agents)
        except BaseException:
            self.close()
            raise

    def _start(self, agents: int) -> None:
        host = f"127.{self.net}.0.1"
        self.data = self.directory / "tracker"
        self.tracker = SimpleNamespace(url=f"https://{host}:7070", port=7070, host=host)
        config = self.directory / "tracker.toml"
        config.write_text(f'host = "{host}"\nport = 7070\ndata_directory = "{self.data}"\n')
        self.config = config
        tracker = self._spawn("-m", "tracker", "--config", config)
        self.tracker_program = Program("tracker", tracker.pid)
        self.programs.append(self.tracker_program)
        wait(lambda: reachable(host, 7070), "the tracker")
        self.token = self.tell("token", "create").strip()
        self.agents = [AgentProgram(self, number) for number in range(1, agents + 1)]
        launcher = self._spawn("-c", LAUNCHER, *(agent.data for agent in self.agents))
        assert launcher.stdout is not None
        for agent, pid in zip(self.agents, launcher.stdout.readline().split(), strict=True):
            agent.pid = int(pid)
            self.programs.append(agent)
        for agent in self.agents:
            wait(lambda agent=agent: agent.status().get("tracker", {}).get("connected"), agent.name)

    def _spawn(self, *arguments: object) -> subprocess.Popen[str]:
        with (self.directory / "log").open("ab") as log:
            command = [sys.executable, *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.processes.append(process)
        return process

    def tell(self, *arguments: str) -> str:
        """A command of `p2pdist-tracker`."""
        command = [sys.executable, "-m", "tracker", *arguments, "--config", str(self.config)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    @property
    def authority(self) -> Authority:
        found = Authority.load(self.data / "authority")
        assert found is not None
        return found

    def pull(self, image: Image, tag: str = "1", agents: list[AgentProgram] | None = None) -> list[float]:
        """Every agent's daemon pulls it at the same time, three layers at once; seconds of each. All is compared."""
        ns = self.upstream.registry.name.replace(":", "%3A")
        began = time.monotonic()

        def one(agent: AgentProgram) -> float:
            status, raw = agent.get(f"/v2/app/a/manifests/{tag}?ns={ns}")
            assert (status, raw) == (200, image.raw), (agent.name, status, raw[:200])
            with ThreadPoolExecutor(3) as layers:
                for digest, (status, body) in zip(
                    image.blobs,
                    layers.map(lambda d: agent.get(f"/v2/app/a/blobs/{d}?ns={ns}"), image.blobs),
                    strict=True,
                ):
                    assert status == 200, (agent.name, status, body[:200])
                    assert body == image.blobs[digest], agent.name
            return time.monotonic() - began

        with ThreadPoolExecutor(len(self.agents)) as pulls:
            return list(pulls.map(one, agents or self.agents))

    def still_works(self) -> None:
        """Every process is alive and unshaken, and two nodes get an image that nobody has seen."""
        self.upstream.rate = None
        self.made += 1
        tag = f"1-{self.made}"
        image = self.upstream.registry.add_image("app/a", tag, [noise(1 << 20, 1000 + self.made)])
        self.pull(image, tag, self.agents[:2])
        assert all(program.alive for program in self.programs)
        for log in [self.directory / "log", *self.directory.glob("agent-*.log")]:
            assert "Traceback" not in log.read_text(errors="replace"), log  # an error that nobody had thought of

    def close(self) -> None:
        with ThreadPoolExecutor(max(1, len(self.programs))) as stops:
            list(stops.map(lambda program: program.stop(), self.programs))
        for process in self.processes:
            process.communicate(timeout=20)
        self.upstream.close()


def reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def wait(condition: Any, what: str, seconds: float = 150.0) -> None:
    """Until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} is not up"
        time.sleep(0.05)
