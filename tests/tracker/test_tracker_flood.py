"""A real tracker that is talked to without end, or by strangers without number: the others are served all the while."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from support.fleet import until
from test_tracker_sessions import join, member, tracker
from tracker_driver import digest

from p2pdist.protocol import messages as wire
from tracker import app

NOTHING = [wire.Leave(digest("what nobody wants"))]


async def ping(agent: Any) -> None:
    await agent.say(wire.Ping())
    await agent.until(wire.Pong)


async def metric(running: Any, name: str) -> float:
    async with running.http.get(running.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


async def test_an_agent_that_says_too_much_is_listened_to_later_and_the_others_are_not() -> None:
    async with (
        tracker(message_rate=100, message_burst=200, message_patience=60.0) as running,
        member(running) as loud,
        member(running) as quiet,
    ):
        await loud.say(*NOTHING * 300)  # a second too much
        await until(lambda: running.visits.door.traffic.delayed == 1)
        began = asyncio.get_running_loop().time()
        asked = asyncio.ensure_future(ping(loud))
        await ping(quiet)
        await quiet.say(join("blob"))
        assert (await quiet.until(wire.Joined)).swarms
        await asked
        assert asyncio.get_running_loop().time() - began > 0.5
        assert running.visits.door.traffic.flooding == 0
        assert await metric(running, "p2pdist_tracker_frames_delayed_total") >= 1


async def test_an_agent_that_goes_on_is_dropped_and_told_why() -> None:
    async with (
        tracker(message_rate=100, message_burst=200, message_patience=5.0) as running,
        member(running) as loud,
        member(running) as quiet,
    ):
        await loud.say(*NOTHING * 1000)
        assert "100 messages a second" in (await loud.until(wire.Rejected)).reason
        assert await loud.frame() is None
        await ping(quiet)
        assert await metric(running, "p2pdist_tracker_sessions_flooding_total") == 1


async def test_strangers_that_say_nothing_are_closed_and_keep_nobody_from_a_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = app.Doorstep
    monkeypatch.setattr(app, "Doorstep", lambda *args: real(*args, patience=0.5, stay=1.5))
    async with tracker(max_strangers=5) as running, member(running) as agent:
        where = ("127.0.0.1", running.port)
        strangers = [await asyncio.open_connection(*where) for _ in range(4)]
        strangers[0][1].write(b"GET / HTTP/1.1\r\nX: ")  # and no end
        strangers[1][1].write(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")  # and no body
        late = [await asyncio.open_connection(*where) for _ in range(3)]
        for reader, writer in [*strangers, *late]:  # all of them, in the end
            while await reader.read(1024):
                pass
            writer.close()
        assert running.visits.door.traffic.crowded >= 7
        await ping(agent)
        async with member(running) as another:
            await ping(another)
        assert await metric(running, "p2pdist_tracker_connections_crowded_total") >= 7


async def test_strangers_have_their_share_of_connections_and_sessions_are_no_strangers() -> None:
    async with tracker(max_strangers=3) as running, member(running) as agent, member(running) as another:
        where = ("127.0.0.1", running.port)
        held = [await asyncio.open_connection(*where) for _ in range(3)]
        reader, writer = await asyncio.open_connection(*where)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
        assert running.visits.door.traffic.crowded == 1
        for one in (agent, another):
            await ping(one)
        for _, each in [*held, (reader, writer)]:
            each.close()
