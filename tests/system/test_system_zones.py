"""Two zones joined by a slow link, real agents in namespaces: the link carries one copy, counted on the link itself."""

from __future__ import annotations

import time

import pytest
from lab.agents import MIRROR_PORT, Agent, Tracker
from lab.images import image
from lab.lab import Lab
from lab.process import wait_until
from lab.pulls import collect, start_pull, verify
from lab.registry import Registry
from lab.sites import SITE_TWO, SiteLink

pytestmark = pytest.mark.system

MIB = 1 << 20
SIZE = 8 * MIB
URL = f"http://127.0.0.1:{MIRROR_PORT}"


def test_the_link_between_two_zones_carries_each_image_once(lab: Lab) -> None:
    registry = Registry(lab, lab.host("registry", up=200.0, down=200.0))
    registry.push("zones/app", "1", image("zones-1", [SIZE]))
    link = SiteLink(lab, rate=20.0, delay=10.0)
    tracker = Tracker(lab, lab.host("tracker"))
    agents = []
    for number in range(1, 5):
        zone, bridge = ("one", "br0") if number <= 2 else ("two", SITE_TWO)
        host = lab.host(f"n{number}", up=100.0, down=100.0, bridge=bridge)
        extra = {"node": {"labels": [f"zone={zone}"]}}
        agents.append(Agent(lab, host, trackers=[tracker.url], registries={"docker.io": registry.url}, extra=extra))
    for agent in agents:
        agent.wait()
    wait_until("all agents at the tracker", lambda: tracker.agents() == 4, 60.0)

    def pull(*numbers: int) -> tuple[float, float]:
        """Copies that crossed the link meanwhile: to zone two, and back."""
        before = link.crossed()
        at = time.time() + 0.5
        pulls = {
            str(number): start_pull(lab, agents[number - 1].host, URL, "zones/app", "1", at=at) for number in numbers
        }
        deadline = at + 120.0
        while not collect(pulls, 1.0):
            assert time.time() < deadline, "still pulling"
        assert verify(pulls), [one.outcome for one in pulls.values()]
        there, back = link.crossed()
        return (there - before[0]) / SIZE, (back - before[1]) / SIZE

    sent = registry.host
    egress = lab.network.counters()[sent.name][0]
    there, back = pull(1, 2, 3, 4)
    upstream = (lab.network.counters()[sent.name][0] - egress) / SIZE
    assert there <= 1.2, (there, back, upstream)
    assert back <= 0.25, (there, back, upstream)
    assert upstream <= 1.15, (there, back, upstream)
