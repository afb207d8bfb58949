"""The agent's session with a tracker: kept up, honest about being lost, and never a reason to hang."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket as sockets
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import ProtocolError, TrackerError
from p2pdist.protocol import attest, limits
from p2pdist.protocol import messages as wire
from p2pdist.tracker_client import TrackerClient, questions
from tracker.app import RunningTracker, TrackerSettings

DIGEST = "sha256:" + "a" * 64
KEY = "tag registry.example/library/thing:1"


class Played:
    """A tracker that does what a test says."""

    def __init__(self, version: int = limits.VERSION, timeout: float = 30.0) -> None:
        self.version = version
        self.timeout = timeout
        self.cluster = Ed25519PrivateKey.generate()
        self.sockets: list[web.WebSocketResponse] = []
        self.frames: asyncio.Queue[list[wire.FromAgent]] = asyncio.Queue()
        self.hellos = 0
        self.refusal = ""
        self.forged = False
        self.mute = False
        self.gate: asyncio.Event | None = None  # before it says anything
        self.pings = 0
        self.url = ""

    def welcome(self, node: bytes) -> wire.Welcome:
        signer = Ed25519PrivateKey.generate() if self.forged else self.cluster
        signature = signer.sign(attest.membership_bytes(node, 2_000_000_000))
        member = wire.Membership(node, 2_000_000_000, signature)
        return wire.Welcome(member, self.cluster.public_key().public_bytes_raw(), self.timeout, 1)

    async def session(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=limits.MAX_TRACKER_FRAME)
        await socket.prepare(request)
        self.sockets.append(socket)
        if self.gate is not None:
            await self.gate.wait()
        await socket.send_bytes(wire.encode([wire.Challenge(self.version, b"n" * 32)]))
        frame = await socket.receive()
        if frame.type is not WSMsgType.BINARY:
            return socket
        (hello,) = wire.decode_from_agent(frame.data)
        assert attest.signature_holds(hello.node, hello.proof, attest.hello_bytes(b"n" * 32))
        self.hellos += 1
        await socket.send_bytes(
            wire.encode([wire.Rejected(self.refusal) if self.refusal else self.welcome(hello.node)])
        )
        while (frame := await socket.receive()).type is WSMsgType.BINARY:
            heard = wire.decode_from_agent(frame.data)
            said = [message for message in heard if not isinstance(message, wire.Ping)]
            self.pings += len(heard) - len(said)
            if len(heard) > len(said) and not self.mute:
                await socket.send_bytes(wire.encode([wire.Pong(1)]))
            if said:
                self.frames.put_nowait(said)
        return socket

    async def say(self, *messages: wire.FromTracker) -> None:
        await self.sockets[-1].send_bytes(wire.encode(list(messages)))


@asynccontextmanager
async def played(**options: Any):
    tracker = Played(**options)
    app = web.Application()
    app.router.add_get("/v1/session", tracker.session)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        tracker.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield tracker
    finally:
        for socket in tracker.sockets:
            await socket.close()
        await runner.cleanup()


class Agent:
    """A client, and what it heard."""

    def __init__(self, *urls: str, key: Ed25519PrivateKey | None = None) -> None:
        self.heard: asyncio.Queue[wire.FromTracker] = asyncio.Queue()
        self.states: list[bool] = []
        self.state = asyncio.Condition()
        self.pauses: list[float] = []
        self.gate: asyncio.Event | None = None
        self.client = TrackerClient(
            urls,
            key or Ed25519PrivateKey.generate(),
            "node",
            "10.0.0.1",
            7000,
            {"zone": "a"},
            on_message=self.on_message,
            on_state=self.states.append,
            rng=random.Random(1),
            pause=self.pause,
        )

    def on_message(self, message: wire.FromTracker) -> None:
        self.heard.put_nowait(message)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)

    async def hear(self, kind: type) -> Any:
        """The next message of a kind."""
        async with asyncio.timeout(10.0):
            while not isinstance(message := await self.heard.get(), kind):
                pass
            return message


@asynccontextmanager
async def running(*urls: str, **options: Any):
    agent = Agent(*urls, **options)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(agent.client.run())
        try:
            yield agent
        finally:
            task.cancel()


def dead_url() -> str:
    """Where nobody listens."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_messages_arrive_in_order_and_the_state_is_told_once() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        assert not agent.client.connected and agent.client.welcome is None
        welcome = await agent.hear(wire.Welcome)
        assert agent.client.connected and agent.client.welcome == welcome
        await tracker.say(wire.Recall(DIGEST), wire.Pong(1), wire.Neighbours([]))
        await tracker.say(wire.Pong(2))
        kinds = [type(await agent.hear(object)) for _ in range(4)]
        assert kinds == [wire.Recall, wire.Pong, wire.Neighbours, wire.Pong]
        assert agent.states == [True]


async def test_what_is_said_in_one_turn_leaves_in_one_frame() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        said = [wire.Half(DIGEST, index) for index in range(100)]
        assert all([agent.client.send(message) for message in said])
        assert await tracker.frames.get() == said


async def test_frames_stay_below_the_limit() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        body = bytes(limits.SMALL_CONTENT)
        said = [wire.Offer(KEY, DIGEST, "m", len(body), body) for _ in range(300)]
        for message in said:
            agent.client.send(message)
        got: list[wire.FromAgent] = []
        while len(got) < len(said):
            got += await tracker.frames.get()  # a longer one would not have been decoded
        assert got == said


async def test_without_a_session_nothing_is_kept_for_later() -> None:
    async with played() as tracker:
        agent = Agent(tracker.url)
        assert agent.client.send(wire.Ping()) is False
        with pytest.raises(TrackerError):
            await agent.client.ask(KEY, 1.0)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.client.run())
            await agent.hear(wire.Welcome)
            agent.client.send(wire.Leave(DIGEST))
            assert await tracker.frames.get() == [wire.Leave(DIGEST)]
            task.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        wire.Content(0, KEY, DIGEST, "m", 3, b"abc"),
        wire.Fetch(0, KEY),
        wire.Absent(0, KEY, 404),
    ],
)
async def test_a_question_is_answered(answer: Any) -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(agent.client.ask(KEY, 10.0))
            assert await tracker.frames.get() == [wire.Ask(0, KEY)]
            await tracker.say(wire.Fetch(77, KEY), answer)
        assert asking.result() == answer


async def test_a_question_without_an_answer_ends_in_time() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        with pytest.raises(TrackerError, match="within"):
            await agent.client.ask(KEY, 0.01)
        await tracker.say(wire.Content(0, KEY, DIGEST, "m", 3, b"abc"))  # too late, and no harm
        assert await agent.hear(wire.Content)


async def test_a_fetch_for_which_nobody_waits_any_more_is_handed_back_at_once() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        with pytest.raises(TrackerError):
            await agent.client.ask(KEY, 0.01)
        assert await tracker.frames.get() == [wire.Ask(0, KEY)]
        await tracker.say(wire.Fetch(0, KEY))
        assert await tracker.frames.get() == [wire.Refuse(KEY, 0, final=False)]


async def test_a_question_ends_soon_after_the_last_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "HANDOVER", 0.1)
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        agent.gate = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(_lost(agent.client.ask(KEY, 60.0)))
            await tracker.frames.get()
            await tracker.sockets[0].close()
        assert asking.result()


async def test_a_question_is_asked_again_where_the_session_goes_on() -> None:
    async with played() as one, played() as other, running(one.url, other.url) as agent:
        await agent.hear(wire.Welcome)
        first, second = (one, other) if one.hellos else (other, one)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(agent.client.ask(KEY, 60.0))
            assert await first.frames.get() == [wire.Ask(0, KEY)]
            await first.sockets[0].close()
            assert await second.frames.get() == [wire.Ask(0, KEY)]
            await second.say(wire.Absent(0, KEY, 404))
        assert asking.result() == wire.Absent(0, KEY, 404)


async def _lost(question) -> bool:
    with pytest.raises(TrackerError, match="lost"):
        await question
    return True


async def test_a_lost_session_is_taken_up_again() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        for _ in range(3):
            await agent.hear(wire.Welcome)
            await tracker.sockets[-1].close()
        await agent.hear(wire.Welcome)
        assert agent.states == [True, False, True, False, True, False, True]


@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x91\x92\xa4Nope\x01", wire.encode([wire.Ping()]), b"\x91" * 10_000, "text"]
)
async def test_a_frame_that_does_not_decode_closes_the_session(frame: bytes | str) -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        if isinstance(frame, str):
            await tracker.sockets[-1].send_str(frame)
        else:
            await tracker.sockets[-1].send_bytes(frame)
        await agent.hear(wire.Welcome)  # of the next session
        assert agent.states[:3] == [True, False, True]


async def test_an_oversized_frame_closes_the_session() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        with contextlib.suppress(ConnectionError):
            await tracker.sockets[-1].send_bytes(bytes(limits.MAX_TRACKER_FRAME + 1))
        await agent.hear(wire.Welcome)


async def test_a_protocol_error_of_the_listener_closes_the_session() -> None:
    async with played() as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)

        def refuse(message: wire.FromTracker) -> None:
            agent.heard.put_nowait(message)
            if isinstance(message, wire.Recall):
                raise ProtocolError("a recall of nothing")

        agent.client._on_message = refuse
        await tracker.say(wire.Recall(DIGEST))
        await agent.hear(wire.Welcome)


async def test_the_next_tracker_is_tried_at_once() -> None:
    async with played() as tracker, running(dead_url(), dead_url(), tracker.url) as agent:
        await agent.hear(wire.Welcome)
        assert agent.pauses == []


async def test_when_one_tracker_dies_the_next_takes_over() -> None:
    async with played() as one, played() as other, running(one.url, other.url) as agent:
        await agent.hear(wire.Welcome)
        assert one.hellos + other.hellos == 1
        await (one if one.hellos else other).sockets[0].close()
        await agent.hear(wire.Welcome)
        assert one.hellos == other.hellos == 1


async def test_attempts_come_later_and_later_with_jitter() -> None:
    agent = Agent(dead_url())
    agent.gate = asyncio.Event()
    agent.gate.set()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(agent.client.run())
        while len(agent.pauses) < 12:
            await asyncio.sleep(0)
        task.cancel()
    for attempt, seconds in enumerate(agent.pauses[:12]):
        most = min(5.0, 0.2 * 2**attempt)
        assert most / 2 <= seconds <= most
    assert len(set(agent.pauses[:12])) == 12


async def test_a_tracker_that_accepts_and_drops_is_not_stormed() -> None:
    async with played() as tracker:
        tracker.refusal = "no room"
        async with running(tracker.url) as agent:
            while len(agent.pauses) < 8:
                await asyncio.sleep(0)
            assert agent.pauses[7] >= 2.5
            assert agent.states == []


async def test_a_tracker_of_another_version_is_left_alone() -> None:
    async with played(version=2) as tracker, running(tracker.url) as agent:
        while len(agent.pauses) < 2:
            await asyncio.sleep(0)
        assert tracker.hellos == 0 and agent.states == []


async def test_a_welcome_that_nobody_signed_is_none() -> None:
    async with played() as tracker:
        tracker.forged = True
        async with running(tracker.url) as agent:
            while len(agent.pauses) < 2:
                await asyncio.sleep(0)
            assert agent.states == [] and agent.client.welcome is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
async def test_an_impossible_session_timeout_is_refused(seconds: float) -> None:
    async with played(timeout=seconds) as tracker, running(tracker.url) as agent:
        while len(agent.pauses) < 2:
            await asyncio.sleep(0)
        assert agent.states == []


async def test_a_tracker_that_accepts_and_says_nothing_is_given_up() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with silent, played() as tracker:
        port = silent.sockets[0].getsockname()[1]
        async with running(f"http://127.0.0.1:{port}", tracker.url) as agent:
            await agent.hear(wire.Welcome)
        assert tracker.hellos == 1


async def test_pings_keep_the_session_and_a_mute_tracker_is_left() -> None:
    async with played(timeout=0.3) as tracker, running(tracker.url) as agent:
        await agent.hear(wire.Welcome)
        for _ in range(5):
            await agent.hear(wire.Pong)
        assert agent.states == [True]
        tracker.mute = True
        await agent.hear(wire.Welcome)  # it didn't answer: a new session
        assert agent.states == [True, False, True]


async def test_a_renewed_membership_is_taken_over() -> None:
    key = Ed25519PrivateKey.generate()
    async with played() as tracker, running(tracker.url, key=key) as agent:
        first = await agent.hear(wire.Welcome)
        renewed = tracker.welcome(key.public_key().public_bytes_raw())
        renewed = wire.Welcome(renewed.membership, renewed.cluster_key, 25.0, 9)
        await tracker.say(renewed)
        await agent.hear(wire.Welcome)
        assert agent.client.welcome == renewed != first


async def test_cancelling_says_goodbye_and_leaves_nothing_behind() -> None:
    async with played() as tracker:
        async with running(tracker.url) as agent:
            await agent.hear(wire.Welcome)
            before = len(asyncio.all_tasks())
            assert before > 2
        assert agent.states == [True, False] and not agent.client.connected
        assert agent.client.send(wire.Ping()) is False


async def test_with_the_real_tracker_two_agents_find_each_other_and_ask_once() -> None:
    real = RunningTracker(TrackerSettings(port=0, insecure=True))
    async with real as tracker, running(tracker.url) as first, running(tracker.url) as second:
        await first.hear(wire.Welcome)
        await second.hear(wire.Welcome)
        join = wire.Join(DIGEST, "registry.example", [wire.Want(DIGEST, 2**20)])
        first.client.send(join)
        await first.hear(wire.Joined)
        second.client.send(join)
        (peer,) = (await second.hear(wire.Joined)).peers
        assert (peer.host, peer.port) == ("10.0.0.1", 7000)
        assert isinstance(await first.client.ask(KEY, 5.0), wire.Fetch)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(second.client.ask(KEY, 5.0))
            name = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
            first.client.send(wire.Offer(KEY, name, "m", 2, b"{}"))
        assert asking.result().data == b"{}"


async def test_agents_come_back_to_a_tracker_that_restarts_on_its_port() -> None:
    async with RunningTracker(TrackerSettings(port=0, insecure=True)) as tracker:
        port = tracker.port
        agent = Agent(tracker.url)
        task = asyncio.get_running_loop().create_task(agent.client.run())
        await agent.hear(wire.Welcome)
    agent.gate = asyncio.Event()
    async with RunningTracker(TrackerSettings(port=port, insecure=True)):
        agent.gate.set()
        await agent.hear(wire.Welcome)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert agent.states == [True, False, True, False]
