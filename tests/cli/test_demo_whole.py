"""`p2pdist demo` as a user starts it: real processes, real sockets, nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("machine")  # ports that two at a time would take from each other


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    """What the demo takes for the system's temporary directory; short, for the sake of the sockets in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pdist.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that have to do with `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if str(directory) in command:
            found.append(command)
    return found


def test_every_node_gets_the_image_and_the_registry_sends_it_once(directory):
    done = run("--nodes", "3", "--size", "6MiB", "--layers", "3", "--json")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["verified"] is True
    assert (got["nodes"], got["digests_proved"]) == (3, 3 * 5)
    assert got["copies_from_upstream"] <= 1.05
    assert got["bytes_from_peers"] >= 6 * 1024**2, "two copies' worth came from peers, less what small content took"
    assert 0 < got["seconds"]["p50"] <= got["seconds"]["last"]
    assert list(directory.iterdir()) == []
    assert processes_of(directory) == []


def test_with_a_node_killed_midway_the_others_finish_and_little_is_read_again(directory):
    done = run("--nodes", "4", "--size", "48MiB", "--kill", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    got = json.loads(done.stdout)
    assert (got["killed"], got["verified"]) == (1, True)
    assert got["copies_from_upstream"] <= 1.10
    assert processes_of(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing_behind(directory, number):
    command = [sys.executable, "-m", "p2pdist.cli", "demo", "--nodes", "3", "--size", "256MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            for line in demo.stdout:
                if "from peers" in line:  # nodes pull
                    break
            assert len(processes_of(directory)) >= 5
            demo.send_signal(number)
            said = demo.stdout.read()
            assert demo.wait(30) == 130
        finally:
            demo.kill()
    assert "every process of the demo is gone" in said
    assert processes_of(directory) == []
    assert list(directory.iterdir()) == []


def test_what_fails_keeps_its_logs_and_says_where(directory, monkeypatch):
    deep = directory / ("d" * 100)  # no admin socket has room here
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    done = run("--nodes", "2", "--size", "1MiB")
    assert done.returncode == 1
    assert "socket" in done.stderr and done.stderr.count("\n") == 1
    (kept,) = deep.iterdir()
    assert str(kept) in done.stdout
    assert "socket" in (kept / "node-1.log").read_text()
    assert processes_of(directory) == []


def test_kept_data_is_the_image_on_every_node(directory):
    done = run("--nodes", "2", "--size", "1MiB", "--layers", "1", "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = directory.iterdir()
    assert str(kept) in done.stdout
    assert {entry.name for entry in kept.iterdir()} >= {"node-1", "node-2", "node-1.log", "tracker.toml", "image"}
    assert os.path.getsize(kept / "image" / "manifest.json")
