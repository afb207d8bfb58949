"""What operators order holds on every replica, whichever took the order and whichever is left."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from replica_kit import Replicas, until

from p2pdist.oci import ImagePattern
from p2pdist.protocol import messages as wire
from tracker import deny
from tracker.app import RunningTracker
from tracker.preheats import PreheatRules

QUICK = {"preheat": PreheatRules(settle=0.0)}


async def ask(replicas: Replicas, tracker: RunningTracker, method: str, path: str, **options: Any) -> dict[str, Any]:
    async with replicas.http.request(method, tracker.url + path, **options) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status < 300, found
        return found


async def test_a_preheat_ordered_at_a_follower_survives_the_leader_and_any_replica_shows_it(tmp_path: Path) -> None:
    async with Replicas(tmp_path, **QUICK) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        await replicas.settled()
        here, there = await replicas.agent(leader), await replicas.agent(follower)
        job = await ask(replicas, follower, "POST", "/v1/jobs", json={"reference": "acme/app:1"})
        for agent in (here, there):
            assert await agent.hears(wire.Preheat) == wire.Preheat(job["id"], "docker.io/acme/app:1")
        here.say(wire.Preheated(job["id"], "done", size_done=7, size=7))
        seen: dict[str, Any] = {}

        async def shown(tracker: RunningTracker, **counts: int) -> None:
            async def look() -> bool:
                seen.update(await ask(replicas, tracker, "GET", f"/v1/jobs/{job['id']}"))
                return bool(seen["counts"] == counts)

            while not await look():
                await asyncio.sleep(0.05)

        for tracker in (leader, follower):
            await shown(tracker, done=1, waiting=1)
        await replicas.stop(leader)
        await until(lambda: follower.leading is not None)
        await there.hears(wire.Preheat, 2)  # said again: it has not said that it is done
        there.say(wire.Preheated(job["id"], "done"))
        await shown(follower, done=2)
        assert seen["state"] == "done" and {row["name"] for row in seen["nodes"]} == {"agent-0", "agent-1"}


async def test_a_preheat_is_cancelled_at_any_replica(tmp_path: Path) -> None:
    async with Replicas(tmp_path, **QUICK) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        await replicas.settled()
        agent = await replicas.agent(leader)
        job = await ask(replicas, leader, "POST", "/v1/jobs", json={"reference": "acme/app:1"})
        await agent.hears(wire.Preheat)
        await ask(replicas, follower, "DELETE", f"/v1/jobs/{job['id']}")
        assert await agent.hears(wire.CancelPreheat) == wire.CancelPreheat(job["id"])


async def test_the_deny_list_reaches_the_agents_of_every_replica_and_those_of_the_next_leader(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        await replicas.settled()
        here, there = await replicas.agent(leader), await replicas.agent(follower)
        await there.hears(wire.DenyList)
        await deny.deny(follower.state, ImagePattern.parse("acme/app:1"), "why", time.time())
        for agent in (here, there):
            change = await agent.hears(wire.DenyChange)
            assert change.added == [wire.Denied("docker.io/acme/app:1", "why")]
        await replicas.stop(leader)
        await until(lambda: there.got(wire.DenyList)[-1].entries == [wire.Denied("docker.io/acme/app:1", "why")])
