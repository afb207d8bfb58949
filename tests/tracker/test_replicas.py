"""Several replicas of one tracker are one tracker: whichever an agent talks to, and whichever of them is left."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import pytest
from replica_kit import Agent, Replicas, free_port, until
from support.fleet import Fleet
from support.registry import FakeRegistry, noise
from tracker_driver import REGISTRY, digest

from p2pdist.config import TrackerConfig
from p2pdist.errors import ConfigError
from p2pdist.protocol import messages as wire
from tracker.state import State, StateSettings, open_state
from tracker.tokens import Ban, Facts

SIZE = 32 * 2**20


def join(*names: str) -> wire.Join:
    return wire.Join(digest("image"), REGISTRY, [wire.Want(digest(name), SIZE) for name in names])


async def written(state: State, node: bytes) -> None:
    """Wait until the node's ban, and no other, is written down."""
    async with asyncio.timeout(30):
        while set(await Facts(state).bans()) != {node}:
            await asyncio.sleep(0.05)


async def test_agents_of_two_replicas_are_in_one_swarm_and_no_chunk_is_leased_twice(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        assert leader.leading is not None and follower.leading is None
        here, there = await replicas.agent(leader), await replicas.agent(follower)
        here.say(join("blob"))
        await here.hears(wire.Joined)
        there.say(join("blob"))
        joined = await there.hears(wire.Joined)
        assert [peer.node for peer in joined.peers] == [here.node] and joined.swarms[0].members == 2
        for _ in range(8):  # credits grow as halves arrive
            for agent in (here, there):
                for lease in agent.got(wire.Lease):
                    agent.say(wire.Half(digest("blob"), lease.first), wire.Got(digest("blob"), lease.first, b"", b""))
            await until(lambda: here.got(wire.Lease) and there.got(wire.Lease))
        leases = [lease.first for agent in (here, there) for lease in agent.got(wire.Lease)]
        assert len(set(leases)) == len(leases) > 2
        await until(lambda: follower.visits.nodes == 2)


async def test_a_rollout_over_two_replicas_takes_one_copy_and_one_resolution_from_upstream(tmp_path: Path) -> None:
    async with (
        Replicas(tmp_path) as replicas,
        FakeRegistry() as registry,
        Fleet(tmp_path, registry, tracked=False, insecure=True) as fleet,
    ):
        trackers = [await replicas.start(), await replicas.start()]
        image = registry.add_image("app/a", "1", [noise(3 << 20, 1), noise(2 << 20, 2)])
        nodes = [await fleet.start(tracker=TrackerConfig(urls=(trackers[n % 2].url,))) for n in range(4)]
        await until(lambda: trackers[0].visits.nodes == trackers[1].visits.nodes == 4)
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert sum(registry.bytes_sent(layer) for layer in image.layers) <= 1.05 * (5 << 20)
        assert len(registry.requests(r"/manifests/1$", "GET")) == 1


async def test_a_tag_is_resolved_once_for_agents_of_both(tmp_path: Path) -> None:
    body = b"a manifest"
    name = f"sha256:{hashlib.sha256(body).hexdigest()}"
    key = f"tag {REGISTRY}/app:1"
    async with Replicas(tmp_path) as replicas:
        here, there = await replicas.agent(await replicas.start()), await replicas.agent(await replicas.start())
        assert isinstance(await here.client.ask(key, 20), wire.Fetch)
        asking = asyncio.ensure_future(there.client.ask(key, 20))
        await asyncio.sleep(0.1)
        here.say(wire.Offer(key, name, "m", len(body), body))
        content = await asking
        assert isinstance(content, wire.Content) and content.data == body and not there.got(wire.Fetch)


async def test_when_the_leader_stops_another_takes_over_and_its_agents_say_everything_again(tmp_path: Path) -> None:
    key = f"tag {REGISTRY}/app:1"
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        here, there = await replicas.agent(leader), await replicas.agent(follower)
        assert isinstance(await here.client.ask(key, 20), wire.Fetch)
        asking = asyncio.ensure_future(there.client.ask(key, 20))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await replicas.stop(leader)
        await there.hears(wire.Welcome, 2)
        assert isinstance(await asking, wire.Fetch)  # asked again for it: nobody waits for an answer that was lost
        assert follower.leading is not None and time.monotonic() - begun < 10
        there.say(join("blob"))
        await there.hears(wire.Lease)


async def test_an_agent_that_moves_to_another_replica_has_one_session(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        agent = await replicas.agent(leader)
        again = Agent(follower.url, "moved", agent.key)
        replicas.agents.append(again)
        await until(lambda: again.client.connected and not agent.client.connected)
        assert leader.leading.nodes == 1
        again.say(join("blob"))
        await again.hears(wire.Lease)


async def test_a_replica_that_is_gone_takes_its_agents_with_it(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        await replicas.agent(leader)
        away = await replicas.agent(follower)
        await until(lambda: leader.leading.nodes == 2)
        await away.stop()
        await until(lambda: leader.leading.nodes == 1)
        await replicas.agent(follower)
        await until(lambda: leader.leading.nodes == 2)
        await replicas.stop(follower)
        await until(lambda: leader.leading.nodes == 1)


async def test_without_redis_links_stay_health_says_so_and_all_recovers_by_itself(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        here, there = await replicas.agent(leader), await replicas.agent(follower)
        banned = b"b" * 32
        state = open_state(replicas.redis.url)
        await Facts(state).ban(Ban(banned, time.time() + 600, "test"))
        await state.close()
        await until(lambda: leader.book.until(time.time(), banned) and follower.book.until(time.time(), banned))
        replicas.redis.kill()
        await until(lambda: leader.reach.trouble and follower.reach.trouble)
        for tracker, role in ((leader, "leads"), (follower, "follows")):
            status, document = await replicas.health(tracker)
            assert (status, document["state"], document["role"]) == (200, "unreachable", role)
        async with replicas.http.get(follower.url + "/metrics") as answer:
            assert "p2pdist_tracker_state_reachable 0.0" in await answer.text()
        here.say(join("blob"))
        there.say(join("blob"))
        await here.hears(wire.Joined)
        await there.hears(wire.Joined)
        replicas.redis.start()
        await until(lambda: not leader.reach.trouble and not follower.reach.trouble)
        assert (await replicas.health(follower))[1]["state"] == "ok"
        assert await replicas.settled() is leader  # who led goes on, though Redis has forgotten it
        await written(leader.state, banned)  # and so does a ban
        assert leader.leading.cluster.banned(time.time(), banned) and follower.book.until(time.time(), banned)
        assert len(there.got(wire.Welcome)) == 1


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "is silent"])
async def test_without_redis_and_leader_the_lowest_survivor_leads_and_the_others_follow_it(
    tmp_path: Path, silent: bool
) -> None:
    async with Replicas(tmp_path) as replicas:
        for _ in range(4):
            await replicas.start()
        leader = await replicas.settled()
        (replicas.redis.pause if silent else replicas.redis.kill)()
        survivors = [tracker for tracker in replicas.running if tracker is not leader]
        agents = [await replicas.agent(tracker) for tracker in survivors]
        await replicas.stop(leader)
        assert await replicas.settled() is min(survivors, key=lambda tracker: tracker.replica.memory.me)
        for agent in agents:
            await agent.hears(wire.Welcome, 2)
            agent.say(join("blob"))
            await agent.hears(wire.Joined)
        (replicas.redis.go_on if silent else replicas.redis.start)()
        await until(lambda: not any(tracker.reach.trouble for tracker in survivors))
        await replicas.settled()


async def test_a_replica_that_starts_without_redis_is_found_by_the_one_that_leads(tmp_path: Path) -> None:
    """It knows of nobody; those that were linked to it before look for it."""
    async with Replicas(tmp_path) as replicas:
        leader = await replicas.start()
        follower = await replicas.start(port=free_port())
        await replicas.settled()
        replicas.redis.kill()
        await replicas.stop(follower)
        again = await replicas.start(port=follower.port)
        agent = await replicas.agent(again)
        assert await replicas.settled() is leader
        assert again.replica.follows
        await until(lambda: leader.leading.nodes == 1)
        agent.say(join("blob"))
        await agent.hears(wire.Lease)


@pytest.mark.parametrize("later", [False, True], ids=["of the same term", "of a later term"])
async def test_of_two_that_meet_the_later_term_goes_on_or_the_lower_id(tmp_path: Path, later: bool) -> None:
    async with Replicas(tmp_path) as replicas:
        replicas.redis.kill()
        await asyncio.gather(replicas.start(), replicas.start())
        low, high = sorted(replicas.running, key=lambda tracker: tracker.replica.memory.me)
        assert len(replicas.leaders) == 2  # neither knows of the other
        if later:
            high.replica.memory.term += 1
        for one, other in ((low, high), (high, low)):
            one.replica.memory.others[other.replica.memory.address] = other.replica.memory.me
        assert await replicas.settled() is (high if later else low)


async def test_who_stops_makes_room_at_once(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        await replicas.stop(await replicas.start())
        state = open_state(replicas.redis.url)
        assert (await state.lead("next", "", 1.0)).owner == "next"
        await state.close()


async def test_two_that_lead_become_one_when_redis_is_back(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        replicas.redis.kill()
        await asyncio.gather(replicas.start(), replicas.start())
        assert len(replicas.leaders) == 2  # neither knows of the other
        agents = [await replicas.agent(tracker) for tracker in replicas.running]
        replicas.redis.start()
        leader = await replicas.settled()
        await until(lambda: leader.leading.nodes == len(agents))


async def test_replicas_with_different_keys_are_no_replicas_of_one_tracker(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        await replicas.start()
        with pytest.raises(ConfigError, match="other keys"):
            await replicas.start(data_directory=str(tmp_path / "own"))


async def test_where_others_reach_a_replica_must_be_said_if_it_listens_everywhere(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        with pytest.raises(ConfigError, match=r"state\.address"):
            await replicas.start(host="0.0.0.0")
        with pytest.raises(ConfigError, match="authority_directory"):
            await replicas.start(data_directory="")
        state = StateSettings(url=replicas.redis.url, address="127.0.0.1")
        tracker = await replicas.start(host="0.0.0.0", state=state)
        assert tracker.replica.memory.address == f"127.0.0.1:{tracker.port}"


async def test_a_ban_reaches_agents_of_every_replica_and_keeps_the_node_out_everywhere(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        good, bad = await replicas.agent(leader), await replicas.agent(follower)
        state = open_state(replicas.redis.url)  # as a command line does it
        await Facts(state).ban(Ban(bad.node, time.time() + 600, "test"))
        assert "banned" in (await bad.hears(wire.Rejected)).reason
        assert (await good.hears(wire.Banned)).node == bad.node
        await until(lambda: follower.book.until(time.time(), bad.node) and not bad.client.connected)
        await Facts(state).lift(bad.node)
        await until(lambda: bad.client.connected)
        assert await state.all("bans") == {}
        await state.close()


async def test_a_ban_without_redis_is_in_force_at_once_outlives_the_leader_and_is_written_later(
    tmp_path: Path,
) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        good, bad = await replicas.agent(follower), await replicas.agent(follower)
        replicas.redis.kill()
        now = time.time()
        leader.leading.dispatch(leader.leading.cluster.ban(now, bad.node, now + 600, "votes", b"proof"))
        assert "banned" in (await bad.hears(wire.Rejected)).reason
        await good.hears(wire.Banned)
        await replicas.stop(leader)
        await until(lambda: follower.leading is not None)
        assert follower.leading.cluster.banned(time.time(), bad.node) is not None
        replicas.redis.start()
        state = open_state(replicas.redis.url)
        await written(state, bad.node)
        await state.close()


async def test_an_order_taken_by_any_replica_reaches_the_agents_of_all(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        agents = [await replicas.agent(leader), await replicas.agent(follower)]
        async with replicas.http.post(follower.url + "/v1/jobs", json={"reference": f"{REGISTRY}/app:1"}) as answer:
            job = await answer.json()
            assert answer.status == 201
        for agent in agents:
            assert (await agent.hears(wire.Preheat)).id == job["id"]


async def test_a_replica_that_reaches_no_leader_sends_its_agents_away_and_says_so(tmp_path: Path) -> None:
    """The State names one, alive, that this replica can't reach: to lead too would read everything twice."""
    async with Replicas(tmp_path) as replicas:
        tracker = await replicas.start()
        agent = await replicas.agent(tracker)
        me = tracker.replica.memory.me
        state = open_state(replicas.redis.url)
        while (await state.lead(me[:17] + "far away", "127.0.0.1:1", 60.0)).owner == me:
            await state.resign(me)
        await until(lambda: tracker.replica.orphaned and not agent.client.connected)
        status, document = await replicas.health(tracker)
        assert status == 503 and document["status"] == "no replica leads"
        await state.resign(me[:17] + "far away")
        await state.close()
        await until(lambda: tracker.leading is not None and agent.client.connected)
        assert (await replicas.health(tracker))[0] == 200


async def test_something_unexpected_costs_a_replica_its_part_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        agent = await replicas.agent(follower)
        links: list[object] = []

        def broken(message: object) -> None:
            links.append(message)
            raise ValueError("nobody thought of this")

        monkeypatch.setattr(follower.replica._relay, "_hear_leads", broken)
        leader.replica.announce()
        await until(lambda: bool(links))
        await agent.hears(wire.Welcome, 2)  # it follows again
        assert await replicas.settled() is leader
