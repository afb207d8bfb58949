"""A tracker whose disk is full: agents notice nothing, metrics say so, what wasn't written is written later."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from test_tracker_sessions import join, member, tracker, wire

from p2pdist.errors import StorageError


async def test_a_full_disk_stops_no_swarm_and_loses_no_ban(tmp_path: Path) -> None:
    async with tracker(data_directory=str(tmp_path)) as running, member(running) as agent:
        base = running.state._base  # as full as a disk can be, without one
        (pages,) = base.execute("PRAGMA page_count").fetchone()
        base.execute(f"PRAGMA max_page_count = {pages + 2}")
        for size in (2000, 100, 1):
            with pytest.raises(StorageError, match="full"):
                for number in range(10_000):
                    await running.state.put("padding", f"{size} {number}", bytes(size))
        await agent.say(join("blob"))
        assert len((await agent.until(wire.Joined)).swarms) == 1
        leading = running.leading
        until = leading.now() + 1000
        leading.dispatch(leading.cluster.ban(leading.now(), bytes(32), until, "wrong bytes"))
        assert (await agent.until(wire.Banned)).node == bytes(32)
        await shows(running, state_reachable=0, bans_not_written=1)
        base.execute("PRAGMA max_page_count = 100000")
        await shows(running, state_reachable=1, bans_not_written=0)
        assert bytes(32) in running.book.bans(leading.now())
    async with tracker(data_directory=str(tmp_path)) as running:
        assert running.cluster.banned(running.leading.now(), bytes(32)) == pytest.approx(until)


async def shows(running, **values: float) -> None:
    """Waits until the metrics say so."""
    async with asyncio.timeout(30):
        while True:
            async with running.http.get(running.url + "/metrics") as answer:
                text = await answer.text()
            gauges = dict(re.findall(r"^p2pdist_tracker_(\w+) (.*)$", text, re.MULTILINE))
            found = {name: float(gauges[name]) for name in values}
            if found == values:
                return
            await asyncio.sleep(0.05)
