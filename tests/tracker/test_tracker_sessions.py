"""Sessions over real WebSockets on loopback: who gets in, what is dropped, and that the tracker goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tracker_driver import REGISTRY, digest

from p2pdist.errors import OperationError
from p2pdist.protocol import attest, limits
from p2pdist.protocol import messages as wire
from tracker.app import RunningTracker, TrackerSettings
from tracker.bans import Sentence
from tracker.replicas.guests import Guest
from tracker.rules import SwarmRules
from tracker.sessions import Door, Members, Session


@asynccontextmanager
async def tracker(**settings: Any):
    async with (
        RunningTracker(TrackerSettings(port=0, insecure=True, **settings)) as running,
        aiohttp.ClientSession() as http,
    ):
        running.http = http
        yield running


class Agent:
    """A session by hand."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, key: Ed25519PrivateKey) -> None:
        self.socket = socket
        self.key = key
        self.node = key.public_key().public_bytes_raw()
        self.frames: list[list[wire.FromTracker]] = []

    async def frame(self) -> list[wire.FromTracker] | None:
        """The next frame; None when the tracker has closed the session."""
        got = await asyncio.wait_for(self.socket.receive(), 10.0)
        return wire.decode_from_tracker(got.data) if got.type is aiohttp.WSMsgType.BINARY else None

    async def until(self, kind: type) -> Any:
        """The next message of a kind."""
        while (frame := await self.frame()) is not None:
            for message in frame:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"the session ended without {kind.__name__}")

    async def say(self, *messages: wire.FromAgent) -> None:
        await self.socket.send_bytes(wire.encode(list(messages)))

    def hello(self, nonce: bytes, **changed: Any) -> wire.Hello:
        fields = {
            "version": limits.VERSION, "node": self.node, "proof": self.key.sign(attest.hello_bytes(nonce)),
            "name": "n", "host": "10.0.0.1", "port": 7000,
        } | changed  # fmt: skip
        return wire.Hello(**fields)


@asynccontextmanager
async def session(running, key: Ed25519PrivateKey | None = None):
    """Connected, not greeted yet."""
    async with running.http.ws_connect(running.url + "/v1/session", max_msg_size=limits.MAX_TRACKER_FRAME) as socket:
        yield Agent(socket, key or Ed25519PrivateKey.generate())


@asynccontextmanager
async def member(running, key: Ed25519PrivateKey | None = None, **changed: Any):
    """Connected and welcome."""
    async with session(running, key) as agent:
        challenge = await agent.until(wire.Challenge)
        await agent.say(agent.hello(challenge.nonce, **changed))
        agent.welcome = await agent.until(wire.Welcome)
        yield agent


def join(*names: str) -> wire.Join:
    return wire.Join(digest("image"), REGISTRY, [wire.Want(digest(name), 2**20) for name in names])


async def status(running) -> dict:
    async with running.http.get(running.url + "/v1/status") as answer:
        return await answer.json()


async def test_a_member_gets_a_membership_signed_by_the_cluster() -> None:
    async with tracker() as running, member(running) as agent:
        membership = agent.welcome.membership
        assert membership.node == agent.node
        assert agent.welcome.cluster_key == running.cluster_key
        assert agent.welcome.nodes == 1  # itself, once
        signed = attest.membership_bytes(membership.node, membership.expires)
        assert attest.signature_holds(running.cluster_key, membership.signature, signed)


async def test_another_version_is_told_which_is_wanted() -> None:
    async with tracker() as running, session(running) as agent:
        challenge = await agent.until(wire.Challenge)
        await agent.say(agent.hello(challenge.nonce, version=99))
        rejected = await agent.until(wire.Rejected)
        assert "version 99" in rejected.reason and f"version {limits.VERSION}" in rejected.reason
        assert await agent.frame() is None


@pytest.mark.parametrize("attack", ["replayed proof", "stolen name", "no proof"])
async def test_a_node_is_who_holds_its_key(attack: str) -> None:
    async with tracker() as running, session(running) as agent:
        challenge = await agent.until(wire.Challenge)
        if attack == "replayed proof":
            hello = agent.hello(b"a nonce seen before" * 2)
        elif attack == "stolen name":
            hello = agent.hello(challenge.nonce, node=Ed25519PrivateKey.generate().public_key().public_bytes_raw())
        else:
            hello = agent.hello(challenge.nonce, proof=bytes(64))
        await agent.say(hello)
        assert "proof" in (await agent.until(wire.Rejected)).reason
        assert (await status(running))["nodes"] == 0


async def test_challenges_are_never_the_same() -> None:
    async with tracker() as running:
        nonces = set()
        for _ in range(5):
            async with session(running) as agent:
                nonces.add((await agent.until(wire.Challenge)).nonce)
        assert len(nonces) == 5


async def test_nothing_is_taken_before_hello() -> None:
    async with tracker() as running, session(running) as agent:
        await agent.say(join("blob"))
        assert "Hello" in (await agent.until(wire.Rejected)).reason
        assert (await status(running))["rollouts"] == []


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x90junk", b"\x91\x92\xa4Nope\x01", wire.encode([wire.Pong(1)]), b"\x91" * 100_000, "text"],
)
async def test_a_malformed_frame_ends_that_session_only(frame: bytes | str) -> None:
    async with tracker() as running, member(running) as other, member(running) as agent:
        await agent.say(join("blob"))
        await agent.until(wire.Lease)
        if isinstance(frame, str):
            await agent.socket.send_str(frame)
        else:
            await agent.socket.send_bytes(frame)
        while await agent.frame() is not None:
            pass
        await other.say(join("blob"))
        assert (await other.until(wire.Lease)).first == 0  # the lease of the one that was dropped


async def test_an_oversized_frame_is_not_read() -> None:
    async with tracker() as running, member(running) as agent:
        try:
            await agent.socket.send_bytes(bytes(limits.MAX_TRACKER_FRAME + 1))
            while await agent.frame() is not None:
                pass
        except ConnectionError:
            pass  # it was closed in our face while we sent
        async with member(running) as other:
            await other.say(wire.Ping())
            assert (await other.until(wire.Pong)).nodes >= 1


async def test_a_frame_of_nothing_is_fine() -> None:
    async with tracker() as running, member(running) as agent:
        await agent.say()
        await agent.say(wire.Ping())
        assert await agent.until(wire.Pong)


async def test_a_second_hello_changes_nothing() -> None:
    async with tracker() as running, member(running) as agent:
        await agent.say(agent.hello(b"x" * 32), wire.Ping())
        assert (await agent.until(wire.Pong)).nodes == 1


async def test_what_is_said_at_once_leaves_in_one_frame() -> None:
    async with tracker() as running, member(running) as agent:
        await agent.say(join("a", "b", "c"), wire.Ping())
        frame = await agent.frame()
        assert [type(message) for message in frame] == [wire.Joined, wire.Lease, wire.Lease, wire.Pong]


async def test_a_silent_agent_is_dropped_and_its_leases_go_on() -> None:
    async with tracker(session_timeout=0.2) as running, member(running) as agent:
        assert agent.welcome.session_timeout == 0.2
        await agent.say(join("blob"))
        await agent.until(wire.Lease)
        while await agent.frame() is not None:
            pass
        document = await status(running)
        assert document["nodes"] == 0 and document["rollouts"] == []


async def test_an_agent_that_says_no_hello_is_dropped() -> None:
    async with tracker(hello_timeout=0.1) as running, session(running) as agent:
        await agent.until(wire.Challenge)
        assert await agent.frame() is None


async def test_an_agent_that_does_not_read_is_dropped() -> None:
    body = bytes(limits.SMALL_CONTENT)
    name = "sha256:" + hashlib.sha256(body).hexdigest()
    key = f"blob {REGISTRY}/x@{name}"
    async with tracker(send_queue=500, send_timeout=0.5) as running, member(running) as agent:
        await agent.say(wire.Ask(0, key), wire.Offer(key, name, "m", len(body), body))
        await agent.until(wire.Fetch)
        async with member(running) as deaf:
            for _ in range(20):  # 20 MiB of answers
                await deaf.say(*(wire.Ask(number, key) for number in range(16)))
            while (await status(running))["nodes"] == 2:
                await agent.say(wire.Ping())
                await agent.until(wire.Pong)
            await agent.say(wire.Ping())
            assert (await agent.until(wire.Pong)).nodes == 1


async def test_a_new_session_of_a_node_replaces_its_old_one() -> None:
    key = Ed25519PrivateKey.generate()
    async with tracker() as running, member(running, key) as old, member(running, key) as new:
        while await old.frame() is not None:
            pass
        await new.say(wire.Ping())
        assert (await new.until(wire.Pong)).nodes == 1


async def test_a_banned_node_is_told_and_stays_out() -> None:
    key = Ed25519PrivateKey.generate()
    async with tracker() as running, member(running, key) as agent:
        running.cluster.bans.set(agent.node, Sentence(running._now() + 60, "test"))
        async with session(running, key) as again:
            challenge = await again.until(wire.Challenge)
            await again.say(again.hello(challenge.nonce))
            assert "banned" in (await again.until(wire.Rejected)).reason


async def test_no_more_nodes_than_allowed() -> None:
    async with tracker(swarm=SwarmRules(max_nodes=1)) as running, member(running), session(running) as agent:
        challenge = await agent.until(wire.Challenge)
        await agent.say(agent.hello(challenge.nonce))
        assert "max_nodes" in (await agent.until(wire.Rejected)).reason


async def test_an_agent_that_names_no_host_is_reached_where_it_comes_from() -> None:
    async with tracker() as running, member(running, host="", port=7001) as first, member(running) as second:
        await first.say(join("blob"))
        await first.until(wire.Joined)
        await second.say(join("blob"))
        (peer,) = (await second.until(wire.Joined)).peers
        assert (peer.node, peer.host, peer.port) == (first.node, "127.0.0.1", 7001)


async def test_stopping_closes_sessions() -> None:
    async with aiohttp.ClientSession() as http, RunningTracker(TrackerSettings(port=0, insecure=True)) as running:
        running.http = http
        async with member(running) as agent:
            await asyncio.gather(running.__aexit__(None, None, None), agent.frame())
            assert agent.socket.closed or await agent.frame() is None


async def test_timers_run_without_being_asked() -> None:
    rules = SwarmRules(alone_after=0.0, recall_timeout=0.05)
    async with tracker(swarm=rules) as running, member(running) as first, member(running) as second:
        await first.say(join("blob"))
        assert (await first.until(wire.Lease)).alone
        await second.say(join("blob"))
        await first.until(wire.Recall)
        assert not (await second.until(wire.Lease)).alone  # it never answered


async def test_health_metrics_and_status() -> None:
    async with tracker() as running, member(running) as agent:
        await agent.say(join("blob"), wire.Holds([digest("held")]))
        await agent.until(wire.Joined)
        async with running.http.get(running.url + "/healthz") as answer:
            assert answer.status == 200 and (await answer.json())["nodes"] == 1
        async with running.http.get(running.url + "/metrics") as answer:
            text = await answer.text()
            assert answer.headers["Content-Type"].startswith("text/plain")
        assert "p2pdist_tracker_nodes 1.0" in text
        assert f'p2pdist_tracker_credits_out{{registry="{REGISTRY}"}} 2.0' in text
        assert "sha256" not in text
        document = await status(running)
        assert document["rollouts"][0]["swarms"][0]["digest"] == digest("blob")
        assert document["node_list"][0]["node"] == agent.node.hex()
        assert json.dumps(document)


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    async with tracker() as running:
        with pytest.raises(OperationError, match=str(running.port)):
            async with RunningTracker(TrackerSettings(port=running.port, insecure=True)):
                pass


async def test_memberships_are_renewed_at_half_of_their_life() -> None:
    now = 1000.0
    members = Members(Ed25519PrivateKey.generate(), 100.0)
    door = Door(TrackerSettings(), members, lambda: now, banned=lambda node: None, full=lambda node: False)
    told: list[wire.FromTracker] = []
    agent = Session(None, Guest(wire.PeerInfo(bytes(32), "h", 1), "h", "n"))
    agent.push = told.append
    for now in (1000.0, 1040.0, 1051.0, 1060.0, 1120.0):  # noqa: B007 - the door's clock
        door.welcome(agent, 1)
    assert [message.membership.expires for message in told] == [1100, 1151, 1220]
