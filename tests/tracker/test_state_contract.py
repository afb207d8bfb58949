"""What every State promises, on each implementation; two handles stand for two replicas of one tracker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.redis_server import RedisServer

from p2pdist.errors import StorageError
from tracker.state import State, open_state
from tracker.tokens import Facts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    found = RedisServer(tmp_path_factory.mktemp("redis"))
    yield found
    found.kill()


@pytest.fixture(params=["file", "redis"])
async def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[State, State]]:
    url = request.getfixturevalue("server").url if request.param == "redis" else ""
    opened = [open_state(url, str(tmp_path), prefix=f"test-{request.node.name.split('[')[0]}"[:64]) for _ in range(2)]
    yield opened[0], opened[1]
    for state in opened:
        await state.close()


Replicas = tuple[State, State]


async def test_what_one_replica_writes_the_other_reads(replicas: Replicas) -> None:
    one, other = replicas
    assert await other.get("bans", "a") is None
    await one.put("bans", "a", b"\x00\xff")
    await one.put("bans", "b", b"")
    await other.put("jobs", "a", b"another table")
    assert await other.get("bans", "a") == b"\x00\xff"
    assert await other.all("bans") == {"a": b"\x00\xff", "b": b""}
    await other.put("bans", "a", b"over it")
    assert await one.get("bans", "a") == b"over it"
    assert await one.all("nothing") == {}


async def test_of_all_that_create_a_record_at_once_one_does(replicas: Replicas) -> None:
    made = await asyncio.gather(*(replicas[n % 2].create("t", "k", b"%d" % n) for n in range(10)))
    assert made.count(True) == 1
    assert await replicas[0].get("t", "k") == b"%d" % made.index(True)


async def test_replace_changes_exactly_what_was_read(replicas: Replicas) -> None:
    one, other = replicas
    assert not await one.replace("t", "k", b"", b"new")  # there is none
    await one.put("t", "k", b"old")
    assert not await other.replace("t", "k", b"older", b"new")
    assert await other.replace("t", "k", b"old", b"new")
    assert not await one.replace("t", "k", b"old", b"late")
    assert await one.get("t", "k") == b"new"


async def test_no_change_by_compare_and_replace_is_lost(replicas: Replicas) -> None:
    async def add(state: State) -> None:
        while True:
            old = await state.get("t", "count") or b"0"
            if await state.replace("t", "count", old, b"%d" % (int(old) + 1)):
                return

    await replicas[0].put("t", "count", b"0")
    await asyncio.gather(*(add(replicas[n % 2]) for n in range(20)))
    assert await replicas[0].get("t", "count") == b"20"


async def test_remove_says_whether_there_was_one(replicas: Replicas) -> None:
    one, other = replicas
    await one.put("t", "k", b"x")
    assert sorted(await asyncio.gather(one.remove("t", "k"), other.remove("t", "k"))) == [False, True]
    assert await one.get("t", "k") is None


async def test_what_has_expired_is_not_there(replicas: Replicas) -> None:
    one, other = replicas
    past, future = time.time() - 5, time.time() + 600
    for key in ("get", "all", "replace", "remove", "create"):
        await one.put("t", key, b"x", past)
    await one.put("t", "kept", b"x", future)
    assert await other.get("t", "get") is None
    assert await other.all("t") == {"kept": b"x"}
    assert not await other.replace("t", "replace", b"x", b"y")
    assert not await other.remove("t", "remove")
    assert await other.create("t", "create", b"again")
    assert await other.get("t", "create") == b"again"


async def test_a_write_sets_the_expiry_anew(replicas: Replicas) -> None:
    one, other = replicas
    past, future = time.time() - 5, time.time() + 600
    await one.put("t", "k", b"x", future)
    await one.put("t", "k", b"y")
    assert await other.replace("t", "k", b"y", b"z", past)
    assert await one.get("t", "k") is None


async def test_the_version_changes_with_every_change_and_with_nothing_else(replicas: Replicas) -> None:
    one, other = replicas
    seen = [await one.version()]

    async def changed() -> bool:
        assert await one.version() == await other.version()
        seen.append(await one.version())
        return seen[-1] not in seen[:-1]

    await one.put("t", "k", b"x")
    assert await changed()
    assert await other.create("t", "l", b"x")
    assert await changed()
    assert await one.replace("t", "l", b"x", b"y")
    assert await changed()
    assert await other.remove("t", "l")
    assert await changed()
    assert not await one.create("t", "k", b"y")
    assert not await one.replace("t", "k", b"y", b"z")
    assert not await one.remove("t", "l")
    await one.all("t")
    await one.lead("a", "x", 1.0)
    assert not await changed()


async def test_one_leads_until_it_stops_renewing(replicas: Replicas) -> None:
    one, other = replicas
    both = await asyncio.gather(one.lead("a", "at-a", 60.0), other.lead("b", "at-b", 60.0))
    first = both[0]
    assert both[1] == first and first.owner in {"a", "b"} and first.address == f"at-{first.owner}"
    loser = "b" if first.owner == "a" else "a"
    assert await one.lead(first.owner, first.address, 0.05) == first  # it stays the same term
    await asyncio.sleep(0.1)
    second = await other.lead(loser, f"at-{loser}", 60.0)
    assert second.owner == loser and second.term > first.term
    assert await one.lead(first.owner, first.address, 60.0) == second


async def test_who_resigns_makes_room_at_once_and_nobody_else_can_do_it_for_him(replicas: Replicas) -> None:
    one, other = replicas
    first = await one.lead("a", "at-a", 60.0)
    await other.resign("b")
    assert await other.lead("b", "at-b", 60.0) == first
    await one.resign("a")
    second = await other.lead("b", "at-b", 60.0)
    assert second.owner == "b" and second.term > first.term


async def test_who_led_and_comes_back_late_has_another_term(replicas: Replicas) -> None:
    one, _ = replicas
    first = await one.lead("a", "at-a", 0.05)
    await asyncio.sleep(0.1)
    again = await one.lead("a", "at-a", 60.0)
    assert again.owner == "a" and again.term > first.term


async def test_a_closed_state_says_so(replicas: Replicas) -> None:
    one, _ = replicas
    await one.close()
    for call in (one.get("t", "k"), one.put("t", "k", b""), one.version(), one.lead("a", "", 1.0)):
        with pytest.raises(StorageError):
            await call


async def test_a_token_lets_in_as_many_as_it_says_whichever_replicas_they_ask_at_once(replicas: Replicas) -> None:
    doors = [Facts(state) for state in replicas]
    now = time.time()
    token = await doors[0].new_token(b"f" * 32, now, 600.0, 3, {"zone": "a"})
    nodes = [bytes([number]) * 32 for number in range(8)]
    asked = [*nodes, *nodes]  # each at both replicas
    answers = await asyncio.gather(
        *(doors[place // 8].redeem(token.secret, node, now) for place, node in enumerate(asked))
    )
    let_in = {node for node, labels in zip(asked, answers, strict=True) if labels is not None}
    assert len(let_in) == 3 and answers.count({"zone": "a"}) == 6  # those got the same answer at both
    assert [one.used for one in await doors[1].tokens()] == [3]
