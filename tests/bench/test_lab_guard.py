"""Whatever happens to a run, the laboratory leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.guard import NETNS, pids_in, runs
from lab.lab import Lab
from lab.process import LabError, wait_until
from lab.redis import Redis

TESTS = Path(__file__).resolve().parents[1]
RUN = """
import sys
from pathlib import Path
from lab.lab import Lab
with Lab(Path(sys.argv[1])) as lab:
    host = lab.host("a", up=10, down=10)
    host.names({"there.test": "10.0.0.1"})
    lab.start("stubborn", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], host)
    mounted = lab.path("mounted")
    lab.ask(["mount", "-t", "tmpfs", "lab", str(mounted)])
    (mounted / "file").write_text("x")
    print(host.netns, lab.processes[0].pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A run in a process of its own, with its namespace and a process that ignores SIGTERM."""
    argv = [sys.executable, "-c", RUN, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as popen:
        assert popen.stdout is not None
        netns, pid = popen.stdout.readline().split()
        assert (NETNS / netns).exists() and runs(int(pid))
        yield popen, netns, int(pid)


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_nothing_behind(
    run: tuple[subprocess.Popen[str], str, int], tmp_path: Path, number: signal.Signals
) -> None:
    popen, netns, pid = run
    popen.send_signal(number)
    popen.wait(30)
    wait_until("the namespace to go", lambda: not (NETNS / netns).exists())
    wait_until("the directory to go", lambda: not list(tmp_path.iterdir()))
    assert not runs(pid)
    assert not Path("/etc/netns", netns).exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not list(NETNS.glob(netns.rpartition("-")[0] + "*")), "the hub went too"


@pytest.mark.system
def test_a_run_that_ends_well_leaves_nothing_behind(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        host = lab.host("a")
        process = lab.start("sleeper", ["sleep", "1000"], host)
        wait_until("it to be inside", lambda: process.pid in pids_in(host.netns))
    assert not process.running
    assert not (NETNS / host.netns).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.system
def test_only_what_the_run_started_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        with Lab(tmp_path) as lab:
            lab.start("sleeper", ["sleep", "1000"])
        assert other.poll() is None
        other.kill()


@pytest.mark.system
def test_a_link_has_the_rate_that_was_set_both_ways_and_when_it_changes(tmp_path: Path) -> None:
    """Half a mebibyte beyond the bucket takes half a second at 8 Mbit/s; unshaped it takes next to nothing."""
    with Lab(tmp_path) as lab:
        a, b = lab.host("a", up=8, down=8), lab.host("b")
        size = 256 * 1024 + 512 * 1024
        assert transfer(a, b, size) > 0.45
        assert transfer(b, a, size) > 0.45
        a.set_rate(up=None, down=None)
        assert transfer(a, b, size) < 0.4
        assert a.sent() > size and b.received() > size


@pytest.mark.system
def test_a_cut_link_loses_everything_silently_until_it_is_mended(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        a, b = lab.host("a"), lab.host("b")
        transfer(a, b, 1000)
        b.cut()
        with pytest.raises(TimeoutError):
            transfer(a, b, 1000, timeout=0.3)
        b.mend()
        assert transfer(a, b, 1000) < 5


@pytest.mark.system
def test_a_program_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        host = lab.host("a")
        process = lab.start("broken", ["sh", "-c", "echo no such thing >&2; exit 3"], host)
        with pytest.raises(LabError, match="status 3: no such thing"):
            lab.wait_port(process, host, 80)


def transfer(sender: object, receiver: object, size: int, timeout: float = 10.0) -> float:
    """Seconds that `size` bytes take from one host to the other."""
    import socket
    import threading

    def listen() -> socket.socket:
        return socket.create_server((receiver.address, 0))

    with receiver.call(listen) as server:
        server.settimeout(timeout)
        address = server.getsockname()
        received: list[float] = []

        def receive() -> None:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                return
            with connection:
                left = size
                while left:
                    left -= len(connection.recv(min(left, 1 << 16)))
                received.append(time.monotonic())

        thread = threading.Thread(target=receive)
        thread.start()
        begin = time.monotonic()
        try:
            with sender.call(lambda: socket.create_connection(address, timeout=timeout)) as connection:
                connection.sendall(bytes(size))
        finally:
            thread.join()
        return received[0] - begin


@pytest.mark.system
def test_redis_answers_in_its_host_and_after_a_restart_has_forgotten(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        host = lab.host("store")
        redis = Redis(lab, host)
        assert lab.ask(["redis-cli", "-u", redis.url, "set", "k", "v"], host).strip() == "OK"
        redis.stop()
        redis.restart()
        assert lab.ask(["redis-cli", "-u", redis.url, "get", "k"], host).strip() == ""
