"""Enrolment against a real tracker on loopback: who gets in, how a member stays one, and who is shut out."""

from __future__ import annotations

import asyncio
import json
import stat
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import until
from typer.testing import CliRunner

from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError, InputError
from p2pdist.pki import Authority, JoinToken, Role, TlsCredentials, identity_of, request_for
from p2pdist.protocol import messages as wire
from p2pdist.tracker_client import TrackerClient
from tracker.__main__ import cli
from tracker.app import RunningTracker, TrackerSettings
from tracker.state import LocalState, open_state
from tracker.tokens import FOREVER, Ban, Facts


@asynccontextmanager
async def tracker(directory: Path, **settings: Any):
    running = RunningTracker(TrackerSettings(port=0, insecure=False, data_directory=str(directory), **settings))
    async with running:
        yield running


class Clock:
    """Time that the test moves; whoever pauses until a time gets there at once when it is reached."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead
        self.pauses: list[float] = []
        self.moved = asyncio.Event()

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        goal = self() + seconds - 0.001
        while self() < goal:
            self.moved.clear()
            await self.moved.wait()

    def move(self, seconds: float) -> None:
        self.ahead += seconds
        self.moved.set()


class Node:
    """A node's enrolment, running while the context lasts."""

    def __init__(self, url: str, directory: Path, token: str | None, key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.node = self.key.public_key().public_bytes_raw()
        self.credentials = TlsCredentials()
        self.clock = Clock()
        self.enrolment = Enrolment(
            [url],
            self.key,
            directory,
            JoinToken.parse(token) if token else None,
            self.credentials,
            clock=self.clock,
            pause=self.clock.pause,
        )

    async def __aenter__(self) -> Node:
        self.task = asyncio.ensure_future(self.enrolment.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def joined(self) -> None:
        await asyncio.wait_for(self.enrolment.member.wait(), 20.0)

    async def refused(self) -> str:
        await until(lambda: bool(self.enrolment.problem))
        assert not self.enrolment.member.is_set()
        return self.enrolment.problem

    def certificate(self) -> Any:
        return self.credentials.certificate


async def test_a_token_makes_a_node_a_member_with_a_short_lived_certificate_for_its_own_key(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        async with Node(running.url, tmp_path / "n", await running.new_token(60, 1)) as node:
            await node.joined()
        identity = identity_of(node.certificate())
        assert (identity.key, identity.role) == (node.node, Role.NODE)
        life = node.certificate().not_valid_after_utc - node.certificate().not_valid_before_utc
        assert 86_400 <= life.total_seconds() <= 86_400 + 600
        for name in ("tls.key", "tls.crt", "ca.crt"):
            assert stat.S_IMODE((tmp_path / "n" / name).stat().st_mode) == 0o600


async def test_a_token_opens_as_often_as_it_says_and_a_lost_answer_costs_no_second_use(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(60, 1)
        async with Node(running.url, tmp_path / "a", token) as first:
            await first.joined()
        async with Node(running.url, tmp_path / "again", token, first.key) as again:
            await again.joined()
        async with Node(running.url, tmp_path / "b", token) as second:
            assert "used up" in await second.refused()


async def test_a_token_of_another_cluster_sends_its_secret_to_nobody(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running, tracker(tmp_path / "other") as other:
        async with Node(running.url, tmp_path / "n", await other.new_token(60)) as node:
            assert "another cluster" in await node.refused()
        assert running._enrolment.refused == 0  # it was never asked


async def test_somebody_in_between_with_a_copy_of_the_authoritys_certificate_gets_no_secret(tmp_path: Path) -> None:
    """The certificate of the authority is public: a man in the middle can show it, but has none signed by it."""
    from aiohttp import web

    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(60)
        pem = running._enrolment._authority.pem
        seen: list[str] = []

        async def play(request: web.Request) -> web.Response:
            seen.append(request.path)
            return web.Response(body=pem)

        app = web.Application()
        app.router.add_route("*", "/{any:.*}", play)
        own = Authority.create(running._now())
        key = Ed25519PrivateKey.generate()
        middle = TlsCredentials(clients_required=False)
        middle.use(own.issue(key.public_key(), Role.TRACKER, {}, running._now(), 600), key, own.pem)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=middle.server).start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        async with Node(url, tmp_path / "n", token) as node:
            await node.refused()
        await runner.cleanup()
        assert set(seen) == {"/v1/authority"}


async def test_a_nodes_certificate_is_no_trackers(tmp_path: Path) -> None:
    """A member that listens where a tracker is expected: TLS itself refuses it."""
    async with tracker(tmp_path / "t") as running:
        async with Node(running.url, tmp_path / "n", await running.new_token(60)) as node:
            await node.joined()
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(running.url + "/healthz", ssl=node.credentials.client, server_hostname=Role.NODE.host)


async def test_renewal_goes_on_in_the_background_and_outlives_an_outage_of_hours(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        port = running.port
        node = Node(running.url, tmp_path / "n", await running.new_token(3600, 1))
        async with node:
            await node.joined()
            await until(lambda: bool(node.clock.pauses))
            first = node.certificate()
            await running.__aexit__(None, None, None)
            for _ in range(120):  # 20 hours, in steps no longer than what it sleeps at once
                node.clock.move(600)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await until(lambda: "not renewed" in node.enrolment.problem)
            assert node.enrolment.member.is_set() and node.certificate() is first
            async with tracker_on(tmp_path / "t", port):
                await _moved(node, lambda: node.certificate() is not first)
                assert identity_of(node.certificate()).key == node.node


@asynccontextmanager
async def tracker_on(directory: Path, port: int):
    async with RunningTracker(TrackerSettings(port=port, insecure=False, data_directory=str(directory))) as running:
        yield running


async def _moved(node: Node, done: Any) -> None:
    async with asyncio.timeout(20):
        while not done():
            node.clock.move(1)
            await asyncio.sleep(0.01)


async def test_a_restarted_node_uses_the_certificate_it_has_without_any_tracker(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(60, 1)
        async with Node(running.url, tmp_path / "n", token) as node:
            await node.joined()
    again = Node(running.url, tmp_path / "n", None, node.key)
    assert again.enrolment.load() and again.certificate() == node.certificate()
    late = Node(running.url, tmp_path / "n", None, node.key)
    late.clock.ahead = 90_000
    assert not late.enrolment.load()  # it has ended
    other = Node(running.url, tmp_path / "n", None)
    assert not other.enrolment.load()  # another key's


@pytest.mark.parametrize("path", ["/v1/status", "/metrics", "/v1/session"])
async def test_without_a_certificate_only_health_and_enrolment_answer(tmp_path: Path, path: str) -> None:
    async with tracker(tmp_path / "t") as running, aiohttp.ClientSession() as http:
        stranger = TlsCredentials()
        stranger.trust(running._enrolment._authority.pem)
        options = {"ssl": stranger.client, "server_hostname": Role.TRACKER.host}
        async with http.get(running.url + "/healthz", **options) as answer:
            assert answer.status == 200
        async with http.get(running.url + path, **options) as answer:
            assert answer.status == 401


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'{"request": 3}', b'{"request": "x", "secret": "zz"}', b'{"request": "x", "more": 1}', b"[" * 1000,
        b'{"request": "\xff\xfe"}', b"[" * 20_000,
    ],
)  # fmt: skip
async def test_malformed_enrolments_are_refused_in_words(tmp_path: Path, body: bytes) -> None:
    async with tracker(tmp_path / "t") as running, aiohttp.ClientSession() as http:
        stranger = TlsCredentials()
        stranger.trust(running._enrolment._authority.pem)
        options = {"ssl": stranger.client, "server_hostname": Role.TRACKER.host}
        async with http.post(running.url + "/v1/enrol", data=body, **options) as answer:
            assert answer.status == 400
        async with http.post(running.url + "/v1/renew", data=body, **options) as answer:
            assert answer.status in (400, 401)
        async with http.post(running.url + "/v1/enrol", data=b"x" * 100_000, **options) as answer:
            assert answer.status == 413


async def test_a_guessed_token_gets_nothing(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running, aiohttp.ClientSession() as http:
        await running.new_token(60)
        stranger = TlsCredentials()
        stranger.trust(running._enrolment._authority.pem)
        ask = {"request": request_for(Ed25519PrivateKey.generate()).decode(), "secret": "00" * 32}
        where = running.url + "/v1/enrol"
        async with http.post(where, json=ask, ssl=stranger.client, server_hostname=Role.TRACKER.host) as answer:
            assert answer.status == 403


@asynccontextmanager
async def session(node: Node, url: str):
    heard: list[Any] = []
    client = TrackerClient(
        [url], node.key, "n", "10.0.0.1", 7000, {},
        on_message=heard.append, on_state=lambda up: None, tls=node.credentials.client,
    )  # fmt: skip
    task = asyncio.ensure_future(client.run())
    try:
        yield client, heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_ban_reaches_running_nodes_within_seconds_survives_a_restart_and_is_lifted(tmp_path: Path) -> None:
    data = str(tmp_path / "t")
    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(60)
        async with Node(running.url, tmp_path / "a", token) as bad, Node(running.url, tmp_path / "b", token) as good:
            await bad.joined()
            await good.joined()
            async with session(bad, running.url) as (out, said), session(good, running.url) as (stays, heard):
                await until(lambda: out.connected and stays.connected)
                assert (await command("bans", "add", bad.node.hex(), "--data", data)).exit_code == 0
                await until(lambda: any(isinstance(m, wire.Banned) and m.node == bad.node for m in heard), 5.0)
                await until(lambda: any(isinstance(m, wire.Rejected) for m in said), 5.0)
                assert not out.connected
    async with tracker(tmp_path / "t") as running, session(bad, running.url) as (out, said):
        await asyncio.sleep(0.5)
        assert not out.connected
        assert bad.node.hex() in (await command("bans", "list", "--data", data)).stdout
        assert (await command("bans", "lift", bad.node.hex(), "--data", data)).exit_code == 0
        await until(lambda: out.connected, 15.0)


async def test_a_banned_node_gets_no_new_certificate(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(3600)
        async with Node(running.url, tmp_path / "n", token) as node:
            await node.joined()
            first = node.certificate()
            await until(lambda: bool(node.clock.pauses))
            running.leading.dispatch(running.cluster.ban(running._now(), node.node, FOREVER, "test"))
            for _ in range(100):
                node.clock.move(600)
                await asyncio.sleep(0)
            await until(lambda: "not renewed" in node.enrolment.problem)
            assert node.certificate() is first
        async with Node(running.url, tmp_path / "m", token, node.key) as again:
            assert "banned" in await again.refused()


async def test_a_session_under_another_nodes_certificate_is_refused(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        async with Node(running.url, tmp_path / "a", await running.new_token(60)) as thief:
            await thief.joined()
        honest = thief.key
        thief.key = Ed25519PrivateKey.generate()  # says Hello as another node than its certificate names
        async with session(thief, running.url) as (client, _):
            await until(lambda: running.visits.door.traffic.rejected > 0)
            assert not client.connected
        thief.key = honest
        async with session(thief, running.url) as (client, _):
            await until(lambda: client.connected)


async def test_votes_that_ban_a_node_are_written_down(tmp_path: Path) -> None:
    async with tracker(tmp_path / "t") as running:
        token = await running.new_token(60)
        async with Node(running.url, tmp_path / "a", token) as node:
            await node.joined()
            async with session(node, running.url) as (client, heard):
                await until(lambda: client.connected)
                running.leading.dispatch(running.cluster.ban(running._now(), b"x" * 32, running._now() + 60, "votes"))
                await until(lambda: any(isinstance(m, wire.Banned) for m in heard))
    state = open_state("", str(tmp_path / "t"))
    assert set(await Facts(state).bans()) == {b"x" * 32}
    await state.close()


def command(*arguments: str) -> Any:
    """In a thread: commands have an event loop of their own."""
    return asyncio.to_thread(CliRunner().invoke, cli, list(arguments))


async def test_only_the_hash_of_a_token_is_kept_and_revoking_ends_it(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path)]
    made = await command("token", "create", "--ttl", "1h", "--uses", "2", "--node-label", "zone=a", *data)
    token = JoinToken.parse(made.stdout)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert token.secret not in stored and token.secret.hex().encode() not in stored
    assert token.hashed.hex().encode() in stored
    listed = (await command("token", "list", *data)).stdout
    assert token.number in listed and "0 of 2 uses" in listed and "zone=a" in listed
    assert str(token).split(".")[2] not in listed
    assert (await command("token", "revoke", token.number, *data)).exit_code == 0
    assert (await command("token", "revoke", token.number, *data)).exit_code == 1
    state = open_state("", str(tmp_path))
    assert await Facts(state).redeem(token.secret, b"n" * 32, 0) is None
    await state.close()


async def test_an_expired_token_opens_nothing() -> None:
    now = 100.0
    state = LocalState.open(None, lambda: now)
    facts = Facts(state)
    token = await facts.new_token(b"f" * 32, 100.0, 10.0, None, {"k": "v"})
    now = 109.0
    assert await facts.redeem(token.secret, b"n" * 32, now) == {"k": "v"}
    assert await facts.redeem(token.secret, b"n" * 32, 110.0) is None  # a clock that is ahead of the state's
    now = 110.0
    assert await facts.redeem(token.secret, b"n" * 32, 100.0) is None
    assert await facts.tokens() == []
    await state.close()


async def test_tokens_of_any_number_of_uses_count_each_node_once() -> None:
    state = LocalState.open(None)
    facts = Facts(state)
    token = await facts.new_token(b"f" * 32, 0.0, 2.0**33, None, {})
    for number in (1, 2, 2):
        assert await facts.redeem(token.secret, bytes([number]) * 32, 1.0) == {}
    assert [one.used for one in await facts.tokens()] == [2]
    await state.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "create", "--ttl", "soon"],
        ["token", "create", "--node-label", "zone"],
        ["bans", "add", "node-1"],
        ["bans", "lift", "00" * 32],
        ["token", "revoke", "nothing"],
    ],
)
def test_a_wrong_command_line_is_one_clear_line(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, [*arguments, "--data", str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.startswith("p2pdist-tracker: ")


def test_a_directory_that_is_no_authority_is_refused(tmp_path: Path) -> None:
    from tracker.authority import open_authority

    with pytest.raises(ConfigError, match=r"no tls\.crt"):
        open_authority("", str(tmp_path), 0.0)


async def test_ban_and_lift_of_the_same_node_leave_nothing() -> None:
    state = LocalState.open(None, lambda: 5.0)
    facts = Facts(state)
    await facts.ban(Ban(b"n" * 32, 10.0, "first"))
    await facts.ban(Ban(b"n" * 32, 20.0, "second"))
    assert (await facts.bans())[b"n" * 32].reason == "second"
    assert await facts.lift(b"n" * 32) and not await facts.lift(b"n" * 32)
    await state.close()


async def test_a_certificate_that_the_authority_did_not_sign_is_not_used(tmp_path: Path) -> None:
    node = Node("https://127.0.0.1:9", tmp_path, None)
    other = Authority.create(node.clock())
    ours = Authority.create(node.clock())
    foreign = other.issue(node.key.public_key(), Role.NODE, {}, node.clock(), 600)
    with pytest.raises(InputError, match="didn't sign"):
        node.enrolment._check(foreign, ours.pem)
    with pytest.raises(InputError, match="not a node's"):
        node.enrolment._check(ours.issue(node.key.public_key(), Role.TRACKER, {}, node.clock(), 600), ours.pem)
    assert json.dumps(node.enrolment.problem) == '""'
