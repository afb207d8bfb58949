"""Replicas under TLS that share nothing but the authority and a Redis: who may link, who gets in, and what waits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from replica_kit import Replicas, until
from typer.testing import CliRunner

from p2pdist.pki import Authority, JoinToken, Role, TlsCredentials, request_for
from tracker.__main__ import cli
from tracker.app import RunningTracker


def secure(directory: Path) -> Replicas:
    Authority.keep(directory / "ca", time.time())
    return Replicas(directory, insecure=False, data_directory="", authority_directory=str(directory / "ca"))


class Stranger:
    """Somebody who knows the authority, and has a key."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.load(directory / "ca")
        self.key = Ed25519PrivateKey.generate()
        self.credentials = TlsCredentials()
        self.credentials.trust(self.authority.pem)

    def become(self, role: Role) -> None:
        certificate = self.authority.issue(self.key.public_key(), role, {}, time.time(), 600)
        self.credentials.use(certificate, self.key, self.authority.pem)

    @property
    def tls(self) -> dict[str, Any]:
        return {"ssl": self.credentials.client, "server_hostname": Role.TRACKER.host}

    async def enrol(self, http: aiohttp.ClientSession, tracker: RunningTracker, token: str) -> tuple[int, str]:
        ask = {"request": request_for(self.key).decode(), "secret": JoinToken.parse(token).secret.hex()}
        async with http.post(tracker.url + "/v1/enrol", json=ask, **self.tls) as answer:
            return answer.status, await answer.text()


async def command(replicas: Replicas, *arguments: str) -> Any:
    """In a thread: commands have an event loop of their own."""
    environment = {"P2PDIST_TRACKER_AUTHORITY_DIRECTORY": str(replicas.directory / "ca")}
    return await asyncio.to_thread(CliRunner(env=environment).invoke, cli, [*arguments, "--state", replicas.redis.url])


async def test_a_token_of_one_use_lets_in_one_of_two_that_ask_different_replicas_at_once(tmp_path: Path) -> None:
    async with secure(tmp_path) as replicas:
        one, other = await replicas.start(), await replicas.start()
        await replicas.settled()  # the link stands, under TLS
        assert one.cluster_key == other.cluster_key
        token = (await command(replicas, "token", "create", "--uses", "1")).stdout.strip()
        people = [Stranger(tmp_path), Stranger(tmp_path)]
        answers = await asyncio.gather(
            *(who.enrol(replicas.http, where, token) for who, where in zip(people, (one, other), strict=True))
        )
        assert sorted(status for status, _ in answers) == [200, 403]
        assert "1 of 1 uses" in (await command(replicas, "token", "list")).stdout


async def test_without_redis_tokens_wait_with_a_reason_and_members_come_and_go(tmp_path: Path) -> None:
    async with secure(tmp_path) as replicas:
        tracker = await replicas.start()
        token = (await command(replicas, "token", "create")).stdout.strip()
        replicas.redis.kill()
        await until(lambda: tracker.reach.trouble)
        status, text = await Stranger(tmp_path).enrol(replicas.http, tracker, token)
        assert status == 503 and "try again later" in text
        failed = await command(replicas, "token", "create")
        assert failed.exit_code == 1 and failed.stderr.startswith("p2pdist-tracker: the state at 127.0.0.1:")
        replicas.redis.start()
        await until(lambda: not tracker.reach.trouble)
        token = await tracker.new_token(600)  # the others are lost with Redis' data
        assert (await Stranger(tmp_path).enrol(replicas.http, tracker, token))[0] == 200


@pytest.mark.parametrize("role", [None, Role.NODE, Role.ADMIN])
async def test_only_replicas_open_links(tmp_path: Path, role: Role | None) -> None:
    async with secure(tmp_path) as replicas:
        tracker = await replicas.start()
        stranger = Stranger(tmp_path)
        if role is not None:
            stranger.become(role)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await replicas.http.ws_connect(tracker.url + "/v1/replica", **stranger.tls)
        assert caught.value.status in {401, 403}
        other = Stranger(tmp_path)
        other.become(Role.TRACKER)
        async with replicas.http.ws_connect(tracker.url + "/v1/replica", **other.tls) as socket:
            await socket.send_bytes(b"\x91\xc1")  # not a greeting: the tracker goes on
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert (await replicas.start()).replica.follows


async def test_replicas_go_on_together_while_the_authoritys_certificate_is_renewed(tmp_path: Path) -> None:
    async with secure(tmp_path) as replicas:
        before = await replicas.start()
        renew_authority(tmp_path / "ca")
        after = await replicas.start()
        assert await replicas.settled() is before
        assert after.cluster_key == before.cluster_key


def renew_authority(directory: Path) -> None:
    """Another certificate for the same key, as cert-manager makes it."""
    old = x509.load_pem_x509_certificate((directory / "tls.crt").read_bytes())
    key = load_pem_private_key((directory / "tls.key").read_bytes(), None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (directory / "tls.crt").write_bytes(builder.sign(key, None).public_bytes(Encoding.PEM))
