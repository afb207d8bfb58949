"""Whatever nodes do, the books balance, nothing idles, and when the trouble is over every pull ends."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracker_agents import Agents
from tracker_driver import Driver

BLOBS = ["layer-1", "layer-2", "layer-3"]
TROUBLE = ["crash", "leave", "fail", "refuse", "lose", "dead", "miss", "drop", "short", "long"]
WORK = ["join", "join", "read", "read", "read", "stream", "spread"]

steps = st.lists(
    st.tuples(st.sampled_from(WORK + TROUBLE), st.integers(1, 6), st.integers(0, 11)), min_size=1, max_size=60
)
orderly = st.lists(
    st.tuples(st.sampled_from([*WORK, "short"]), st.integers(1, 6), st.integers(0, 11)), min_size=1, max_size=60
)


def act(agents: Agents, what: str, number: int, place: int) -> None:
    blob = BLOBS[place % len(BLOBS)]
    match what:
        case "join":
            agents.join(number, BLOBS[place % len(BLOBS) :], rollout=f"image-{place % 2}")
        case "read":
            agents.read(place)
        case "stream":
            agents.stream()
        case "spread":
            agents.spread()
        case "crash":
            agents.crash(number)
        case "leave":
            agents.leave(number, blob)
        case "fail":
            agents.fail(place, 502, final=False)
        case "refuse":
            agents.fail(place, 403 if place % 2 else 0, final=True)
        case "lose":
            agents.lose(place)
        case "dead":
            agents.dead(number, 1 + place % 6)
        case "miss":
            agents.miss(number)
        case "drop":
            agents.drop(number, blob)
        case "short":
            agents.pass_time(0.1)
        case "long":
            agents.pass_time(7.0)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from([0.0, 0.25]), st.sampled_from([1, 3]))
def test_the_books_balance_and_every_pull_ends(script, alone_after: float, run: int) -> None:
    agents = Agents(Driver(alone_after=alone_after, run=run))
    for what, number, place in script:
        act(agents, what, number, place)
    for _ in range(400):
        if not agents.unfinished:
            break
        while agents.jobs:
            agents.read(0)
        agents.stream()
        agents.spread()
        agents.pass_time(1.0)
        for number in list(agents.wants):
            agents.miss(number)
    assert not agents.unfinished
    for number in list(agents.have):
        agents.crash(number)
    agents.pass_time(100.0)
    state = agents.driver.swarms.state
    assert not (state.nodes or state.swarms or state.rollouts or state.registries or state.holders)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(orderly, st.sampled_from([0.0, 0.25]))
def test_without_trouble_no_chunk_is_read_twice(script, alone_after: float) -> None:
    agents = Agents(Driver(alone_after=alone_after))
    for what, number, place in script:
        act(agents, what, number, place)
    while agents.unfinished:
        agents.pass_time(0.1)
        while agents.jobs:
            agents.read(0)
        agents.stream()
        agents.spread()
    assert len(set(agents.reads)) == len(agents.reads)
