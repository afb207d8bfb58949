"""The admin socket: only its user gets in, a dead agent's file is no obstacle, a live agent's is never taken."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import pytest
from prometheus_client import CollectorRegistry, Counter

from p2pdist.admin import AdminClient, AdminError, AdminServer, NoAgent
from p2pdist.errors import StorageError


def server(path, status=None):
    return AdminServer(path, lambda: status or {"node": {"name": "n"}}, CollectorRegistry())


async def test_status_comes_back_as_the_agent_gave_it(tmp_path):
    said = {"node": {"name": "n"}, "transfer": {"bytes_from_peers": 1 << 40}, "tracker": {"connected": False}}
    async with server(tmp_path / "s", said), AdminClient(tmp_path / "s") as client:
        assert await client.status() == said


async def test_status_is_asked_for_anew_each_time(tmp_path):
    count = iter(range(9))
    agent = AdminServer(tmp_path / "s", lambda: {"n": next(count)}, CollectorRegistry())
    async with agent, AdminClient(tmp_path / "s") as client:
        assert [(await client.status())["n"] for _ in range(3)] == [0, 1, 2]


async def test_metrics_are_those_of_the_registry_that_was_passed_in(tmp_path):
    registry = CollectorRegistry()
    Counter("p2pdist_probe", "a probe", registry=registry).inc(3)
    async with AdminServer(tmp_path / "s", dict, registry), AdminClient(tmp_path / "s") as client:
        assert "p2pdist_probe_total 3.0" in await client.metrics()


async def test_no_other_user_can_open_the_socket_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        async with server(tmp_path / "deep" / "s"):
            assert stat.S_IMODE((tmp_path / "deep" / "s").stat().st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_the_socket_is_gone_after_the_agent(tmp_path):
    async with server(tmp_path / "s"):
        pass
    assert not (tmp_path / "s").exists()


async def test_a_killed_agents_socket_file_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    async with server(tmp_path / "s"), AdminClient(tmp_path / "s") as client:
        assert await client.status()


async def test_a_running_agents_socket_is_never_taken(tmp_path):
    async with server(tmp_path / "s", {"who": "first"}):
        with pytest.raises(StorageError, match="another agent"):
            await server(tmp_path / "s", {"who": "second"}).__aenter__()
        async with AdminClient(tmp_path / "s") as client:
            assert (await client.status())["who"] == "first"


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(StorageError, match="in the way"):
        await server(tmp_path / "s").__aenter__()
    assert (tmp_path / "s").read_text() == "precious"


async def test_who_may_not_open_the_socket_is_told_so_and_not_that_no_agent_runs(tmp_path, monkeypatch):
    async def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    async with AdminServer(tmp_path / "s", lambda: {}, CollectorRegistry()):
        # As the kernel says it to everybody but root.
        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refused)
        async with AdminClient(tmp_path / "s") as client:
            with pytest.raises(AdminError, match="not allowed; ask as the user that the agent runs as") as error:
                await client.status()
    assert not isinstance(error.value, NoAgent)


async def test_without_an_agent_the_error_says_how_to_start_one(tmp_path):
    async with AdminClient(tmp_path / "s") as client:
        with pytest.raises(AdminError, match="p2pdist up"):
            await client.status()


async def answering(path, response: bytes):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]", "no p2pdist agent"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "no p2pdist agent"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "no answer"),
        (b"\0\0\0", "no answer"),
    ],
)
async def test_what_is_no_agent_is_said_to_be_none(tmp_path, response, why):
    async with await answering(tmp_path / "s", response), AdminClient(tmp_path / "s") as client:
        with pytest.raises(AdminError, match=why):
            await client.status()


async def test_an_endless_answer_is_not_read_for_ever(tmp_path):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"), AdminClient(tmp_path / "s") as client:
        with pytest.raises(AdminError, match="over 16777216 bytes"):
            await client.status()
