"""A chunk comes into a zone once, from upstream or from another zone, and out of the upstream once for all zones."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict

import pytest
from tracker_driver import CHUNK, REGISTRY, Driver, bitmap, digest, leases, node_id, of

from p2pdist.protocol import messages as wire

ZONES = {"one": range(1, 7), "two": range(11, 17)}


class Play:
    """Nodes that do what they are told: a read from upstream takes `slow[zone]` seconds, one across a second."""

    def __init__(self, driver: Driver, zones: dict[str, range], chunks: int, slow: dict[str, float]) -> None:
        self.driver = driver
        self.zones = zones
        self.zone = {number: zone for zone, numbers in zones.items() for number in numbers}
        self.chunks = chunks
        self.slow = slow
        self.heap: list[tuple[float, int, str, int, str]] = []
        self.entered: dict[str, Counter[int]] = defaultdict(Counter)  # zone -> chunk -> times
        self.upstream: Counter[int] = Counter()
        self.readers: Counter[str] = Counter()  # reads from upstream, by zone
        self.dead: set[int] = set()
        self.seen = 0

    def start(self, *zones: str, blob: str = "blob") -> None:
        for zone in zones or self.zones:
            for number in self.zones[zone]:
                self.driver.connect(number, zone=zone)
                self.driver.join(number, blob, chunks=self.chunks)

    def kill(self, *numbers: int) -> None:
        self.dead.update(numbers)
        self.driver.disconnect(*numbers)

    def _hear(self) -> None:
        for number, message in self.driver.said[self.seen :]:
            if isinstance(message, wire.Lease) and number not in self.dead:
                assert not message.alone
                zone = self.zone[number]
                took = self.slow[zone] if message.source is None else 1.0
                if message.source is None:
                    self.upstream[message.first] += 1
                    self.readers[zone] += 1
                else:
                    source = int.from_bytes(message.source.node, "big")
                    assert self.zone[source] != zone and message.source.zone == self.zone[source]
                    assert self.entered[self.zone[source]][message.first] or digest("blob") in self.held(source)
                now = self.driver.now
                heapq.heappush(self.heap, (now + took / 2, number, "half", message.first, zone))
                heapq.heappush(self.heap, (now + took, number, "got", message.first, zone))
        self.seen = len(self.driver.said)

    def held(self, number: int) -> set[str]:
        node = self.driver.swarms.state.nodes.get(node_id(number))
        return node.holds if node is not None else set()

    def run(self, until=lambda: False) -> None:
        """Until nothing is under way."""
        self._hear()
        while self.heap and not until():
            when, number, what, index, zone = heapq.heappop(self.heap)
            if number in self.dead:
                continue
            self.driver.later(max(0.0, when - self.driver.now))
            if what == "half":
                self.driver.half(number, "blob", index)
            else:
                self.entered[zone][index] += 1
                self.driver.got(number, "blob", index)
                if len(self.entered[zone]) == self.chunks:
                    for other in self.zones[zone]:
                        if other not in self.dead:
                            self.driver.done(other, "blob")
            self._hear()

    def assert_each_once(self, *zones: str) -> None:
        for zone in zones or self.zones:
            assert self.entered[zone] == Counter(range(self.chunks)), zone
        assert self.upstream == Counter(range(self.chunks))


@pytest.mark.parametrize("seed", range(5))
def test_each_chunk_comes_into_each_zone_once_and_from_upstream_once(seed: int) -> None:
    play = Play(Driver(seed), ZONES, 100, {"one": 1.0, "two": 1.0})
    play.start()
    play.run()
    play.assert_each_once()


def test_the_zone_near_the_upstream_reads_for_the_others() -> None:
    zones = {"one": range(1, 7), "two": range(11, 17), "three": range(21, 24)}
    play = Play(Driver(), zones, 200, {"one": 0.4, "two": 2.0, "three": 3.0})
    play.start("three", "two", "one")
    play.run()
    play.assert_each_once()
    assert play.readers["one"] >= 194


def test_a_nearer_zone_that_comes_later_takes_the_reading_over() -> None:
    play = Play(Driver(), ZONES, 200, {"one": 0.2, "two": 2.0})
    play.start("two")
    play.run(until=lambda: len(play.entered["two"]) >= 20)
    play.start("one")
    play.run()
    play.assert_each_once()
    assert play.readers["one"] >= 150


def test_a_warm_zone_gives_to_a_cold_one_and_the_upstream_nothing() -> None:
    driver = Driver()
    driver.connect(*ZONES["one"], zone="one")
    for number in ZONES["one"]:
        driver.done(number, "blob")
    play = Play(driver, ZONES, 50, {"one": 1.0, "two": 1.0})
    play.start("two")
    play.run()
    assert play.entered["two"] == Counter(range(50)) and not play.upstream
    sources = Counter(message.source.node for _, message in of(driver.said, wire.Lease))
    assert len(sources) == 6 and max(sources.values()) <= 25  # not all from one


def test_a_node_of_one_zone_is_never_alone_while_another_zone_takes_part() -> None:
    driver = Driver(alone_after=0.0)
    driver.connect(1, zone="one")
    driver.join(1, "blob")
    assert [message.alone for _, message in of(driver.said, wire.Lease)] == [True]
    driver.connect(11, zone="two")
    driver.join(11, "blob")
    assert [number for number, _ in of(driver.said, wire.Recall)] == [1]
    assert driver.take(11, wire.Lease) == []
    driver.say(1, wire.Returned(digest("blob"), bitmap(0, 1, 2)))
    across = [(lease.first, lease.source.node) for lease in driver.take(11, wire.Lease) if lease.source is not None]
    assert across == [(0, node_id(1)), (1, node_id(1)), (2, node_id(1))]


@pytest.mark.parametrize("seed", range(3))
def test_when_the_holder_or_the_source_dies_another_takes_over(seed: int) -> None:
    play = Play(Driver(seed), ZONES, 60, {"one": 1.0, "two": 4.0})
    play.start()
    play.run(until=lambda: len(play.entered["two"]) >= 10)
    play.kill(2, 3, 12, 13)  # of both zones
    play.run()
    for number in (1, 11):  # what only the dead had is missed, and comes again
        for _ in range(20):
            play.driver.later(4.0)
            play.driver.miss(number, "blob", *range(60))
            play.driver.miss(number + 4, "blob", *range(60))
            play.run()
    assert set(play.entered["one"]) == set(play.entered["two"]) == set(range(60))


def test_a_zone_whose_others_died_reads_from_upstream() -> None:
    play = Play(Driver(), ZONES, 60, {"one": 1.0, "two": 4.0})
    play.start()
    play.run(until=lambda: len(play.entered["one"]) >= 20)
    play.kill(*ZONES["one"])
    play.run()
    assert set(play.entered["two"]) == set(range(60))
    assert play.readers["two"] >= 30


def test_a_source_that_does_not_give_is_passed_by_and_then_the_upstream_is_read() -> None:
    driver = Driver()
    driver.connect(1, 2, 3, zone="one")
    for number in (1, 2, 3):
        driver.done(number, "blob")
    driver.connect(11, zone="two")
    driver.join(11, "blob", chunks=1)
    sources = set()
    for _ in range(2):
        (lease,) = driver.take(11, wire.Lease)
        sources.add(lease.source.node)
        driver.failed(11, "blob", 0, 0)
        driver.later(0.3)
    assert len(sources) == 2
    (lease,) = driver.take(11, wire.Lease)
    assert lease.source is None
    assert driver.swarm("blob").rollout.hold_until <= driver.now  # no fault of the upstream's


def test_a_node_that_says_it_gets_nothing_does_not_make_its_zone_read_from_upstream() -> None:
    driver = Driver()
    for number in (1, 2, 3, 4):
        driver.connect(number, zone="one")
        driver.done(number, "blob")
    for number in (11, 12, 13, 14):
        driver.connect(number, zone="two")
        driver.join(number, "blob", chunks=60)
    while leased := driver.leased("blob"):
        for index, number in leased.items():
            if number == 11:
                driver.failed(11, "blob", index, 0)
            else:
                driver.half(number, "blob", index)
                driver.got(number, "blob", index)
        driver.later(0.3)
    assert driver.swarm("blob").known() == driver.swarm("blob").full
    assert all(message.source for _, message in of(driver.said, wire.Lease))


def test_zones_that_cannot_reach_each_other_read_from_upstream_and_try_again_later() -> None:
    driver = Driver()
    driver.connect(*range(1, 7), zone="one")
    for number in range(1, 7):
        driver.done(number, "blob")
    driver.connect(11, 12, zone="two")
    driver.join(11, "blob", chunks=100)
    driver.join(12, "blob", chunks=100)
    for index, number in list(driver.leased("blob").items()):  # eight are under way
        driver.failed(number, "blob", index, 0)
    driver.said.clear()
    for index, number in list(driver.leased("blob").items()):
        if driver.swarm("blob").leases[index].source is not None:
            driver.failed(number, "blob", index, 0)
    for _ in range(10):
        driver.later(0.3)
        for index, number in list(driver.leased("blob").items()):
            driver.half(number, "blob", index)
            driver.got(number, "blob", index)
    across = [message.source for _, message in of(driver.said, wire.Lease)]
    assert len(across) >= 10 and across == [None] * len(across)
    driver.said.clear()
    driver.later(31.0)
    assert any(message.source for _, message in of(driver.said, wire.Lease))


def test_a_carrier_that_falls_silent_is_replaced() -> None:
    driver = Driver()
    driver.connect(1, zone="one")
    driver.done(1, "blob")
    driver.connect(11, 12, zone="two")
    driver.join(11, "blob", chunks=1)
    driver.join(12, "blob", chunks=1)
    (first,) = [number for number, _ in of(driver.said, wire.Lease)]
    driver.later(31.0)
    assert [number for number, _ in of(driver.said, wire.Lease)] == [first, 23 - first]


def test_what_is_on_its_way_between_two_zones_is_bounded() -> None:
    for size, most in ((CHUNK, 8), (1024 * 1024, 4), (8 * 1024 * 1024, 2)):
        driver = Driver()
        driver.connect(1, zone="one")
        driver.done(1, "blob")
        for number in range(11, 31):
            driver.connect(number, zone="two")
            driver.say(number, wire.Join(digest("blob"), REGISTRY, [wire.Want(digest("blob"), 100 * size, size)]))
        assert len(of(driver.said, wire.Lease)) == most
        number, lease = of(driver.said, wire.Lease)[0]
        driver.half(number, "blob", lease.first)
        assert len(of(driver.said, wire.Lease)) == most + 1


def test_neighbours_are_of_the_same_zone_but_for_a_few() -> None:
    driver = Driver(degree=10)
    for number in range(1, 101):
        zone = "one" if number % 2 else "two"
        driver.connect(number, zone=zone)
        driver.join(number, "blob", chunks=100)
        (joined,) = driver.take(number, wire.Joined)
        across = [peer for peer in joined.peers if peer.zone != zone]
        assert len(joined.peers) <= 10 and len(across) <= driver.rules.zone_links
        if number > 40:
            assert len(across) == driver.rules.zone_links and len(joined.peers) >= 5


def test_a_zone_that_the_upstream_refuses_gets_it_from_the_other() -> None:
    driver = Driver()
    for zone, numbers in ZONES.items():
        for number in list(numbers)[:3]:
            driver.connect(number, zone=zone)
            driver.join(number, "blob", chunks=20)
    (mine,) = [(n, i) for n, i in leases(driver.said) if n > 10]
    driver.failed(*(mine[0], "blob", mine[1]), status=403, final=True)
    for _ in range(40):
        for index, number in list(driver.leased("blob").items()):
            swarm = driver.swarms.state.nodes[node_id(number)].seats[digest("blob")].swarm
            if number > 10 and swarm.leases[index].source is None:
                driver.failed(number, "blob", index, status=403, final=True)
            else:
                driver.half(number, "blob", index)
                driver.got(number, "blob", index)
        driver.later(0.5)
    assert of(driver.said, wire.Gone) == []
    two = driver.swarms.state.nodes[node_id(11)].seats[digest("blob")].swarm
    assert two.known() == two.full


def test_a_blob_that_is_nowhere_is_gone_in_all_zones() -> None:
    driver = Driver()
    for zone, numbers in ZONES.items():
        driver.connect(*numbers, zone=zone)
        for number in numbers:
            driver.join(number, "blob", chunks=20)
    for _ in range(10):
        for index, number in list(driver.leased("blob").items()):
            driver.failed(number, "blob", index, status=404, final=True)
        driver.later(0.5)
    assert len({number for number, _ in of(driver.said, wire.Gone)}) == 12


def test_without_zones_nothing_changes_and_labels_alone_make_none() -> None:
    said = []
    for zone in ("", "x"):
        driver = Driver(3)
        for number in range(1, 9):
            peer = wire.PeerInfo(node_id(number), f"host-{number}", 7000)
            labels = {"zone": zone} if zone else {}  # of an engine that can't fetch across
            driver._take(driver.cluster.connected(driver.now, peer, f"host-{number}", "n", labels))
            driver.join(number, "blob", chunks=30)
        said.append([(n, message) for n, message in driver.said])
    assert said[0] == said[1] and all(
        peer.zone == "" for _, m in said[0] if isinstance(m, wire.Joined) for peer in m.peers
    )


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_books_hold_and_every_chunk_arrives(seed: int) -> None:
    rng = random.Random(seed)
    zones = {"": range(1, 4), "one": range(11, 15), "two": range(21, 25)}
    driver = Driver(seed)
    play = Play(driver, zones, 40, {"": 1.0, "one": 0.5, "two": 3.0})
    names = list(zones)
    rng.shuffle(names)
    for zone in names:
        play.start(zone)
        play.run(until=lambda: rng.random() < 0.05)
    for _ in range(6):
        zone = rng.choice(names)
        alive = [number for number in zones[zone] if number not in play.dead]
        if len(alive) > 1:
            play.kill(rng.choice(alive))
        play.run(until=lambda: rng.random() < 0.05)
    for _ in range(60):
        play.run()
        driver.later(4.0)
        for zone, numbers in zones.items():
            alive = [number for number in numbers if number not in play.dead]
            lacking = [index for index in range(40) if not play.entered[zone][index]]
            for number in alive[:2]:
                driver.miss(number, "blob", *lacking)
    assert all(set(play.entered[zone]) == set(range(40)) for zone in ("one", "two"))
    for swarm in driver.swarms.state.swarms.get(
        digest("blob"), {}
    ).values():  # of nodes in no zone: all holders are near
        assert swarm.known() == swarm.full
    for numbers in zones.values():
        driver.disconnect(*(number for number in numbers if number not in play.dead))
    state = driver.swarms.state
    assert not (state.swarms or state.holders or state.zoned or state.rollouts or state.families or state.nodes)
