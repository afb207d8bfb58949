"""The manifests' own configuration and commands at work: Redis, two trackers, an API server, a pod that joins."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_apiserver import ApiServer, Token
from lab.process import Process, wait_until
from manifests import container, find

from p2pdist.config import load_agent
from p2pdist.enrol import Enrolment
from p2pdist.pki import Authority, identity_of
from tracker.app import RunningTracker
from tracker.config import TrackerSettings
from tracker.config import load as load_tracker

pytestmark = pytest.mark.system
PASSWORD = "only-trackers-know"


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """Debian's redis-server, started by the StatefulSet's own command."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "data").mkdir()
    port = free_port()
    *shell, script = container("StatefulSet", "p2pdist-redis", "redis")["command"]
    script = script.replace("/etc/p2pdist/redis/password", str(tmp_path / "password"))
    script = script.replace("--dir /data", f"--dir {tmp_path / 'data'} --bind 127.0.0.1 --port {port}")
    process = Process("redis", [*shell, script], tmp_path / "redis.log")
    try:
        wait_until("redis", lambda: "PONG" in ask(port, PASSWORD) or not process.running, 30.0, every=0.1)
        assert process.running, process.tail()
        yield port
    finally:
        process.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, password: str) -> str:
    argv = ["redis-cli", "-p", str(port), "ping"]
    env = {"PATH": "/usr/bin:/bin", "REDISCLI_AUTH": password}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_redis_wants_the_password_of_the_secret_and_keeps_its_data(redis_port: int, tmp_path: Path) -> None:
    assert ask(redis_port, PASSWORD).strip() == "PONG"
    assert "WRONGPASS" in ask(redis_port, "guessed")
    assert (tmp_path / "data" / "appendonlydir").is_dir()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert PASSWORD.encode() not in path.read_bytes()


def tracker_settings(api: ApiServer, redis_port: int, directory: Path) -> TrackerSettings:
    """The ConfigMap's, with the places of this machine for those of a pod."""
    (directory / "tracker.toml").write_text(find("ConfigMap", "p2pdist-tracker")["data"]["tracker.toml"])
    settings = load_tracker(directory / "tracker.toml", {"P2PDIST_TRACKER_STATE_ADDRESS": ""})
    state = dataclasses.replace(
        settings.state, url=f"redis://127.0.0.1:{redis_port}", password_file=str(directory / "password")
    )
    kubernetes = dataclasses.replace(
        settings.kubernetes, api=api.url, ca_file=str(api.ca_file), token_file=str(api.token_file)
    )
    return dataclasses.replace(
        settings,
        host="127.0.0.1",
        port=0,
        metrics_port=free_port(),
        authority_directory=str(directory / "authority"),
        state=state,
        kubernetes=kubernetes,
    )


async def test_a_pod_becomes_a_member_at_either_of_two_trackers_and_prometheus_gets_their_metrics(
    redis_port: int, tmp_path: Path
) -> None:
    Authority.keep(tmp_path / "authority", 1_750_000_000.0)
    text = find("ConfigMap", "p2pdist-agent")["data"]["agent.toml"]
    (tmp_path / "token").write_text("projected")
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer(tmp_path))
        api.tokens["projected"] = Token(account="p2pdist:p2pdist-agent")
        for number in range(2):
            settings = tracker_settings(api, redis_port, tmp_path)
            running = await stack.enter_async_context(RunningTracker(settings))
            changes = {
                "https://p2pdist-tracker-replicas.p2pdist.svc:7070": running.url,
                "/var/run/secrets/p2pdist/token": str(tmp_path / "token"),
                "/etc/p2pdist/authority/ca.crt": str(tmp_path / "authority" / "tls.crt"),
                "/var/lib/p2pdist": str(tmp_path / f"node-{number}"),
            }
            for old in changes:
                assert old in text
            (tmp_path / "agent.toml").write_text(replaced(text, changes))
            enrolment = Enrolment.open(load_agent(tmp_path / "agent.toml", {}), Ed25519PrivateKey.generate())
            assert enrolment is not None
            task = asyncio.ensure_future(enrolment.run())
            try:
                await asyncio.wait_for(enrolment.member.wait(), 60.0)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            assert enrolment.credentials.certificate is not None
            assert identity_of(enrolment.credentials.certificate).labels == {"node": "worker-7"}
            async with aiohttp.ClientSession() as session:
                base = f"http://127.0.0.1:{settings.metrics_port}"
                async with session.get(f"{base}/metrics") as answer:
                    assert "p2pdist_tracker" in await answer.text()
                for page in ("/v1/status", "/healthz", "/v1/enrol", "/v1/session"):
                    async with session.get(f"{base}{page}") as answer:
                        assert answer.status == 404, "metrics and nothing else"


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
