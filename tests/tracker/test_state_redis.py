"""Redis as it is run: passwords, TLS, Sentinel, cluster mode, silence, and the loss of its data."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.redis_server import RedisServer, free_port

from p2pdist.errors import ConfigError, StorageError
from tracker.state import open_state


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[RedisServer]]:
    servers: list[RedisServer] = []
    yield servers
    for server in servers:
        server.kill()


async def test_a_password_from_a_file_opens_and_a_wrong_one_is_named_as_the_reason(
    started: list[RedisServer], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis", "--requirepass", "s3cret word")
    started.append(server)
    (tmp_path / "password").write_text("s3cret word\n")
    by_file = open_state(server.url, password_file=str(tmp_path / "password"))
    by_url = open_state(f"redis://:s3cret%20word@127.0.0.1:{server.port}/1")
    wrong = open_state(f"redis://:wr0ng@127.0.0.1:{server.port}")
    await by_file.put("t", "k", b"v")
    assert await by_file.get("t", "k") == b"v"
    assert await by_url.get("t", "k") is None  # another database
    with pytest.raises(StorageError, match=f"127.0.0.1:{server.port}.*(invalid|WRONGPASS)") as caught:
        await wrong.get("t", "k")
    assert "wr0ng" not in str(caught.value)
    for state in (by_file, by_url, wrong):
        await state.close()


async def test_clusters_with_different_prefixes_share_a_server(started: list[RedisServer], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    one, other = open_state(server.url, prefix="one"), open_state(server.url, prefix="other")
    await one.put("t", "k", b"v")
    assert (await one.lead("a", "", 60.0)).owner == "a"
    assert await other.all("t") == {} and await other.version() == 0
    assert (await other.lead("b", "", 60.0)).owner == "b"
    client = Redis.from_url(server.url)
    assert all(key.startswith((b"{one}:", b"{other}:")) for key in await client.keys())
    await client.aclose()
    await one.close()
    await other.close()


async def test_tls_is_checked(started: list[RedisServer], tmp_path: Path) -> None:
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=redis",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1")
    signing = "x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out s.crt -days 2 -extfile san"
    subprocess.run(["openssl", *signing.split()], cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", f"{tmp_path}/s.crt", "--tls-key-file", f"{tmp_path}/s.key")
    started.append(RedisServer(tmp_path / "redis", *options, "--tls-auth-clients", "no"))
    good = open_state(f"rediss://127.0.0.1:{port}", ca_file=str(tmp_path / "ca.crt"))
    distrusting = open_state(f"rediss://127.0.0.1:{port}")
    other_name = open_state(f"rediss://localhost:{port}", ca_file=str(tmp_path / "ca.crt"))
    assert await good.create("t", "k", b"v")
    for state in (distrusting, other_name):
        with pytest.raises(StorageError, match=r"(?i)certificate"):
            await state.get("t", "k")
    for state in (good, distrusting, other_name):
        await state.close()


async def test_cluster_mode_with_every_key_in_one_slot(started: list[RedisServer], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    started.append(server)
    client = Redis.from_url(server.url)
    await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    while (await client.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":
        await asyncio.sleep(0.05)
    await client.aclose()
    state = open_state(f"redis+cluster://127.0.0.1:{server.port}")
    assert await state.create("t", "k", b"v") and await state.replace("t", "k", b"v", b"w")
    assert await state.all("t") == {"k": b"w"} and await state.version() > 0
    assert (await state.lead("a", "x", 60.0)).owner == "a"
    await state.close()


async def test_sentinel_names_the_master(started: list[RedisServer], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    (tmp_path / "sentinel").mkdir()
    (tmp_path / "sentinel" / "conf").write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
    sentinel = RedisServer(tmp_path / "sentinel", arguments=[str(tmp_path / "sentinel" / "conf"), "--sentinel"])
    started.append(sentinel)
    state = open_state(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/main")
    assert await state.create("t", "k", b"v")
    assert await state.get("t", "k") == b"v"
    await state.close()


async def test_a_silent_server_costs_a_second_and_one_that_is_back_serves_at_once(
    started: list[RedisServer], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    state = open_state(server.url)
    await state.put("t", "k", b"v")
    server.pause()
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"no answer within 1\.0 s"):
        await state.get("t", "k")
    assert 0.9 < time.monotonic() - begun < 10.0
    server.go_on()
    assert await state.get("t", "k") == b"v"
    server.kill()
    with pytest.raises(StorageError, match=f"127.0.0.1:{server.port}"):
        await state.get("t", "k")
    server.start()
    assert await state.get("t", "k") is None  # no error: connections that died are not used again
    await state.close()


async def test_versions_and_terms_are_new_ones_after_the_data_is_lost(
    started: list[RedisServer], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    state = open_state(server.url)
    await state.put("t", "k", b"v")
    version, leader = await state.version(), await state.lead("a", "", 60.0)
    server.kill()
    with pytest.raises(StorageError):
        await state.version()
    server.start()
    assert await state.version() != version
    await state.put("t", "k", b"v")
    assert await state.version() > version
    assert (await state.lead("b", "", 60.0)).term > leader.term
    await state.close()


async def test_expired_records_do_not_pile_up(started: list[RedisServer], tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    state = open_state(server.url)
    for number in range(100):
        await state.put("t", str(number), b"v", time.time() - 1)
    client = Redis.from_url(server.url)
    assert await client.hlen("{p2pdist}:table:t") < 30
    await client.aclose()
    await state.close()


async def test_a_cancelled_call_is_cancelled_at_whatever_point_it_was(
    started: list[RedisServer], tmp_path: Path
) -> None:
    server = RedisServer(tmp_path / "redis")
    started.append(server)
    state = open_state(server.url)
    for turns in range(24):
        call = asyncio.ensure_future(state.version())
        for _ in range(turns):
            await asyncio.sleep(0)
        if not call.done():
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    await state.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://secret@h", "begins with 'http'"),
        ("redis://:secret@h:1:2", "HOST:PORT, got 'h:1:2'"),
        ("redis://:secret@h:99999", "HOST:PORT"),
        ("redis://:secret@h/zero", "redis://"),
        ("redis://:secret@h,i", "redis://"),
        ("redis://:secret@h?db=1", "redis://"),
        ("redis://", "HOST"),
        ("redis+sentinel://:secret@h", "name of Sentinel's service"),
    ],
)
def test_a_url_that_cannot_be_used_is_explained_without_its_password(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        open_state(url)
    assert "secret" not in str(caught.value)


def test_a_prefix_that_would_break_the_hash_tag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"state\.prefix"):
        open_state("redis://h", prefix="a}b")


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-password"):
        open_state("redis://h", password_file=str(tmp_path / "no-password"))
    with pytest.raises(ConfigError, match="no-ca"):
        open_state("rediss://h", ca_file=str(tmp_path / "no-ca"))
