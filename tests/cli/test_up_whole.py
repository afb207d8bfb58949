"""`p2pdist up` as a user starts it: the first node, a second one that joins, daemons' requests, and the end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from p2pdist.cli.demo.cluster import free_port
from p2pdist.cli.demo.image import make_image
from p2pdist.cli.demo.pull import Pull
from p2pdist.cli.demo.registry import MANIFEST_FILE, DemoRegistry

pytestmark = pytest.mark.xdist_group("machine")  # ports that two at a time would take from each other


class Node:
    """A running `p2pdist up`; `said` is what it printed until it was ready."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.port = free_port("127.0.0.1", 0)
        self.socket = directory / "admin.sock"
        own = ("--data-dir", directory, "--port", self.port, "--peer-port", free_port("127.0.0.1", 0))
        command = [sys.executable, "-m", "p2pdist.cli", "up", *map(str, own), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.said = ""

    def wait(self) -> None:
        for line in self.process.stdout:
            self.said += line
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(f"it ended: {self.process.wait()}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def up(tmp_path):
    nodes = []

    async def start(*arguments: object) -> Node:
        node = Node(tmp_path / f"n{len(nodes)}", *arguments)
        nodes.append(node)
        await asyncio.to_thread(node.wait)
        return node

    yield start
    for node in nodes:
        node.close()


async def pulled(node: Node) -> Pull:
    pull = Pull(f"http://127.0.0.1:{node.port}", "demo/rollout", "latest", "registry.demo")
    start = asyncio.Event()
    start.set()
    await pull.run(start)
    return pull


async def test_two_nodes_with_nothing_configured_share_one_copy(up, tmp_path):
    image = make_image(tmp_path / "image", 3 * 1024 * 1024, 2)
    (image.directory / MANIFEST_FILE).write_bytes(image.manifest)
    registry = DemoRegistry(image.directory)
    async with TestServer(registry.app()) as server:
        upstream = f"registry.demo={server.make_url('')}"
        tracker_port = free_port("127.0.0.1", 0)
        first = await up("--registry", upstream, "--address", "127.0.0.1", "--tracker-port", tracker_port)
        line = next(line for line in first.said.splitlines() if "--join" in line)
        joining = line.split()[2:]
        assert joining[:2] == ["--join", f"https://127.0.0.1:{tracker_port}"]
        second = await up("--registry", upstream, *joining)

        for node in (first, second):
            pull = await pulled(node)
            assert (pull.error, pull.proved) == ("", set(image.digests))

    assert registry.sent.total() <= 1.05 * image.size
    command = [sys.executable, "-m", "p2pdist.cli", "status", "--json", "--socket", str(second.socket)]
    asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    status = json.loads(asked.stdout)
    assert status["tracker"]["connected"] is True
    assert status["transfer"]["bytes_from_peers"] >= 2 * 1024 * 1024
    assert await asyncio.to_thread(second.stop) == 0
    assert await asyncio.to_thread(first.stop) == 0
    assert not first.socket.exists() and not second.socket.exists()


async def test_a_node_that_comes_back_still_has_the_image_with_the_registry_gone(up, tmp_path):
    image = make_image(tmp_path / "image", 1024 * 1024, 1)
    (image.directory / MANIFEST_FILE).write_bytes(image.manifest)
    async with TestServer(DemoRegistry(image.directory).app()) as server:
        upstream = f"registry.demo={server.make_url('')}"
        node = await up("--registry", upstream, "--address", "127.0.0.1", "--tracker-port", free_port("127.0.0.1", 0))
        assert not (await pulled(node)).error
        assert await asyncio.to_thread(node.stop) == 0
    again = await up("--registry", upstream, "--address", "127.0.0.1", "--tracker-port", free_port("127.0.0.1", 0),
                     "--data-dir", tmp_path / "n0")  # fmt: skip
    pull = await pulled(again)
    assert (pull.error, pull.proved) == ("", set(image.digests))


def second_up(directory: Path, **ports: int) -> subprocess.CompletedProcess[str]:
    """Another `p2pdist up` that should fail; ports that aren't given are free ones."""
    command = [sys.executable, "-m", "p2pdist.cli", "up", "--data-dir", str(directory), "--address", "127.0.0.1"]
    for option in ("port", "peer-port", "tracker-port"):
        command += [f"--{option}", str(ports.get(option) or free_port("127.0.0.1", 0))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("which", ["port", "peer-port", "tracker-port"])
def test_a_port_that_is_taken_is_one_clear_line(tmp_path, which):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        taken = other.getsockname()[1]
        done = second_up(tmp_path, **{which: taken})
    assert done.returncode in (1, 2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("p2pdist: ") and str(taken) in last
    assert "Traceback" not in done.stderr


async def test_a_second_agent_on_the_same_data_is_refused_with_the_reason(up, tmp_path):
    await up("--address", "127.0.0.1", "--tracker-port", free_port("127.0.0.1", 0))
    done = await asyncio.to_thread(second_up, tmp_path / "n0")
    assert done.returncode == 1
    assert str(tmp_path / "n0") in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
