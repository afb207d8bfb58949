"""The way of a frame: nothing between connection and WebSocket, and the answer from whoever read the question."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop
from support.fleet import until
from test_tracker_sessions import member, tracker

from p2pdist.connections import Between
from p2pdist.protocol import messages as wire
from p2pdist.protocol.messages import PeerInfo
from tracker import app
from tracker.patience import Vigil
from tracker.replicas.guests import Guest
from tracker.sessions import Session, Traffic

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Steps(app.Doorstep):
    """The last one that was made."""

    last: app.Doorstep

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        type(self).last = self


@pytest.mark.parametrize("loop", LOOPS)
def test_what_an_agent_says_passes_the_doorstep_once_which_still_hears_the_end(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[bytes] = []
    monkeypatch.setattr(app, "Doorstep", Steps)
    real = Between.data_received
    monkeypatch.setattr(Between, "data_received", lambda self, data: (passed.append(data), real(self, data))[1])

    async def main() -> None:
        async with tracker() as running:
            async with member(running) as agent:
                heads = len(passed)
                for _ in range(20):
                    await agent.say(wire.Ping())
                    await agent.until(wire.Pong)
                assert len(passed) == heads <= 2  # the Hello may come before the protocol has been changed
                assert len(Steps.last.connections) == 1
            await until(lambda: not Steps.last.connections)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


class Socket:
    """Notes frames; takes none while `open` isn't set."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send_bytes(self, frame: bytes) -> None:
        self.frames.append([message.nodes for message in wire.decode_from_tracker(frame)])
        await self.open.wait()


def session_of(socket: Socket) -> Session:
    return Session(socket, Guest(PeerInfo(bytes(32), "h", 1), "h", "n"))  # type: ignore[arg-type]


async def test_what_is_held_leaves_at_once_in_one_frame_and_never_before_what_waits() -> None:
    socket, traffic = Socket(), Traffic()
    session = session_of(socket)
    patience = Vigil(asyncio.get_running_loop(), 30.0, 10.0).watch(lambda silent: None)
    try:
        session.hold()
        session.push(wire.Pong(1))
        session.push(wire.Pong(2))
        await session.flush(patience, traffic)
        assert socket.frames == [[1, 2]]  # though nobody runs `send_all` yet
        assert (traffic.frames_out, traffic.messages_out) == (1, 2)
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(session.send_all(patience, traffic))
            socket.open.clear()
            session.push(wire.Pong(3))
            await until(lambda: socket.frames[-1] == [3])  # it isn't taken
            session.hold()
            session.push(wire.Pong(4))
            await session.flush(patience, traffic)
            assert socket.frames == [[1, 2], [3]] and session.waiting == 1
            socket.open.set()
            await until(lambda: socket.frames == [[1, 2], [3], [4]])
            sender.cancel()
    finally:
        patience.stop()


async def test_who_is_rejected_or_ended_in_the_middle_of_its_own_frame_is_out() -> None:
    loop, traffic = asyncio.get_running_loop(), Traffic()
    for end, reason in (
        (lambda session: session.push(wire.Rejected("x")), "it was rejected"),
        (lambda session: session.end("enough"), "enough"),
    ):
        patience = Vigil(loop, 30.0, 10.0).watch(lambda silent: None)
        socket = Socket()
        socket.send_bytes = _taken  # type: ignore[method-assign]
        session = session_of(socket)
        session.hold()
        end(session)
        await session.flush(patience, traffic)
        assert await asyncio.wait_for(session.send_all(patience, traffic), 30.0) == reason
        patience.stop()


async def _taken(frame: bytes) -> None:
    pass
