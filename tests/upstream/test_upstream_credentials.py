"""Credentials from Docker's config.json and its helpers. A look-up never fails and never tells a secret."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from p2pdist.upstream.credentials import MAX_FILE, MAX_HELPER_ANSWER, Credentials, IdentityToken, Login, RegistryToken


def basic(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def config(tmp_path: Path):
    def write(value: Any) -> Credentials:
        file = tmp_path / "config.json"
        file.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return Credentials(file, helper_timeout=5.0)

    return write


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(name: str, script: str) -> None:
        program = tmp_path / "bin" / f"docker-credential-{name}"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return write


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v1/", "ghcr.io"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
async def test_a_login_is_found_under_every_key_that_docker_login_writes(config, key: str, registry: str) -> None:
    found = await config({"auths": {key: basic("alice", "pass:word")}}).find(registry)
    assert found.credential == Login("alice", "pass:word")


@pytest.mark.parametrize(
    "key",
    ["ghcr.io.evil.example", "evil.example/ghcr.io", "ghcr.io:8443", "xghcr.io", "http://evil.example/https://ghcr.io"],
)
async def test_a_login_is_never_found_for_another_registry_that_looks_alike(config, key: str) -> None:
    assert (await config({"auths": {key: basic("alice", "pw")}}).find("ghcr.io")).credential is None


async def test_the_exact_key_comes_before_one_that_means_the_same(config) -> None:
    auths = {"https://ghcr.io/v2/": basic("old", "x"), "ghcr.io": basic("new", "x")}
    assert (await config({"auths": auths}).find("ghcr.io")).credential == Login("new", "x")


async def test_plain_user_identity_token_and_registry_token(config) -> None:
    auths = {
        "a.x": {"username": "u", "password": "p"},
        "b.x": {**basic("u", ""), "identitytoken": "id"},
        "c.x": {"registrytoken": "rt"},
    }
    credentials = config({"auths": auths})
    assert (await credentials.find("a.x")).credential == Login("u", "p")
    assert (await credentials.find("b.x")).credential == IdentityToken("id")
    assert (await credentials.find("c.x")).credential == RegistryToken("rt")


async def test_a_rotated_password_needs_no_restart(config) -> None:
    credentials = config({"auths": {"a.x": basic("u", "one")}})
    assert (await credentials.find("a.x")).credential == Login("u", "one")
    config({"auths": {"a.x": basic("u", "two")}})
    assert (await credentials.find("a.x")).credential == Login("u", "two")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"auths": []}', b'{"auths": {"a.x": 1}}',
     b'{"auths": {"a.x": {"auth": "!!"}}}', b'{"auths": {"a.x": {"auth": 7}}}',
     b'{"credHelpers": {"a.x": 7}}', b'{"credsStore": []}',
     b'{"auths":{"a.x":{"registrytoken":"t"}}}' + b" " * MAX_FILE],
)  # fmt: skip
async def test_a_file_that_is_broken_means_no_credentials_and_a_note(config, content: bytes) -> None:
    found = await config(content).find("a.x")
    assert found.credential is None and "config.json" in found.note


async def test_a_broken_file_is_reported_without_what_it_holds(config) -> None:
    found = await config(b'{"auths": {"a.x": {"auth": hunter2-secret}}}').find("a.x")
    assert "hunter2" not in found.note


async def test_a_missing_file_means_no_credentials_and_a_note(tmp_path: Path) -> None:
    found = await Credentials(tmp_path / "none.json").find("a.x")
    assert found.credential is None and "No such file" in found.note
    assert (await Credentials().find("a.x")).note == "no credentials file is configured"


async def test_secrets_stay_out_of_representations() -> None:
    assert "pw" not in repr([Login("u", "pw"), IdentityToken("pw"), RegistryToken("pw")])


async def test_a_helper_of_the_registry_is_asked_by_its_name_and_comes_before_store_and_file(config, helper) -> None:
    helper("mine", 'read server; echo "{\\"Username\\":\\"$1-$server\\",\\"Secret\\":\\"s\\"}"')
    credentials = config({"auths": {"a.x": basic("u", "p")}, "credHelpers": {"a.x": "mine"}, "credsStore": "absent"})
    assert (await credentials.find("a.x")).credential == Login("get-a.x", "s")


async def test_the_store_is_asked_for_docker_hub_by_the_url_that_docker_uses(config, helper) -> None:
    helper("store", 'read server; echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"$server\\"}"')
    assert (await config({"credsStore": "store"}).find("docker.io")).credential == IdentityToken(
        "https://index.docker.io/v1/"
    )


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo credentials not found in native keychain; exit 1", "has no credentials"),
        ("echo nonsense", "something else"),
        ('echo \'{"Username":1,"Secret":2}\'', "something else"),
        ("exit 0", "something else"),
        (f"head -c {MAX_HELPER_ANSWER * 2} /dev/zero", "or failed"),
        ("yes", "or failed"),
        ("kill -9 $$", "or failed"),
    ],
)
async def test_a_helper_that_finds_nothing_or_breaks_leaves_the_file_and_a_note(
    config, helper, script: str, note: str
) -> None:
    helper("bad", script)
    found = await config({"auths": {"a.x": basic("u", "p")}, "credsStore": "bad"}).find("a.x")
    assert found.credential == Login("u", "p")
    found = await config({"credsStore": "bad"}).find("a.x")
    assert found.credential is None and note in found.note and "docker-credential-bad" in found.note


async def test_a_helper_that_hangs_is_ended_with_its_children(config, helper, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    helper("slow", f"sleep 1000 & echo $! > {pid_file}; wait")
    credentials = config({"credsStore": "slow"})
    credentials._timeout = 0.5
    found = await credentials.find("a.x")
    assert found.credential is None and "no answer within 0.5 s" in found.note
    status = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] in "ZX"


async def test_a_cancelled_look_up_ends_its_helper(config, helper, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    helper("slow", f"echo $$ > {fifo}; exec sleep 1000")
    task = asyncio.get_running_loop().create_task(config({"credsStore": "slow"}).find("a.x"))
    pid = (await asyncio.to_thread(fifo.read_text)).strip()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("name", ["../../bin/sh", "a/b", "", "-x", "a b", "x" * 65, "a\n"])
async def test_a_helper_name_that_leaves_the_path_is_not_run(config, name: str) -> None:
    found = await config({"credHelpers": {"a.x": name}}).find("a.x")
    assert found.credential is None


async def test_a_helper_name_with_a_slash_runs_nothing_in_the_working_directory(
    config, tmp_path: Path, monkeypatch
) -> None:
    program = tmp_path / "docker-credential-x" / "evil"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert (await config({"credsStore": "x/evil"}).find("a.x")).credential is None
    assert not (tmp_path / "ran").exists()


async def test_a_helper_that_is_not_installed_leaves_a_note(config) -> None:
    assert "can't be run" in (await config({"credsStore": "not-there-at-all"}).find("a.x")).note
