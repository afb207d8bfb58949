"""Sites: who meets whom across, who carries a blob between sites, and who reads from upstream."""

from __future__ import annotations

from tracker_driver import Driver, digest, node_id

from p2pdist.protocol import messages as wire
from p2pdist.protocol.labels import FAR, GATEWAY, SITE, UPSTREAM
from p2pdist.protocol.messages import PeerInfo
from tracker.gateways import AWAITED

PORT = 5061


def connect(driver: Driver, number: int, site: str, *, gateway: bool = True, far: bool = False) -> None:
    labels = {SITE: site}
    if gateway:
        labels[GATEWAY] = str(PORT)
    if far:
        labels[UPSTREAM] = FAR
    peer = PeerInfo(node_id(number), f"host-{number}", 7000)
    driver._take(driver.cluster.connected(driver.now, peer, f"host-{number}", f"n{number}", labels))


def carrier(number: int, site: str) -> PeerInfo:
    """How a gateway of another site is named."""
    return PeerInfo(node_id(number), f"host-{number}", PORT, site, blob=digest("blob"))


def peers(driver: Driver, number: int) -> dict[int, PeerInfo]:
    """Whom the node was told about since the last look, by number."""
    told = driver.take(number, wire.Joined) + driver.take(number, wire.Neighbours)
    return {int.from_bytes(peer.node, "big"): peer for message in told for peer in message.peers}


def two_sites(driver: Driver, *, gateways: tuple[int, ...] = (1, 2, 11, 12), far: bool = False) -> None:
    """1 to 4 in site one, 11 to 14 in site two, all in one swarm."""
    numbers = (1, 2, 3, 4, 11, 12, 13, 14)
    for number in numbers:
        one = number < 10
        connect(driver, number, "one" if one else "two", gateway=number in gateways, far=far and not one)
    for number in numbers:
        peers(driver, number)
        driver.join(number, "blob")


def test_only_one_gateway_of_each_site_meets_the_other_site_and_by_its_gateways_port() -> None:
    driver = Driver()
    two_sites(driver)
    told = {number: peers(driver, number) for number in (1, 2, 3, 4, 11, 12, 13, 14)}
    across = [(n, m, info) for n, known in told.items() for m, info in known.items() if (n < 10) != (m < 10)]
    assert {(n, m): info for n, m, info in across} == {
        (11, 1): carrier(1, "one"),
        (1, 11): carrier(11, "two"),
    }
    inside = [info for n, known in told.items() for m, info in known.items() if (n < 10) == (m < 10)]
    assert len(inside) == 12 and all(info.port == 7000 and not info.site for info in inside)


def test_where_a_site_has_no_gateway_nodes_meet_as_without_sites() -> None:
    driver = Driver()
    two_sites(driver, gateways=(1, 2))
    known = peers(driver, 14)
    assert set(known) == {1, 2, 3, 4, 11, 12, 13}
    assert all(info.port == 7000 and not info.site for info in known.values())


def test_who_comes_before_the_gateways_does_not_meet_the_other_site_unless_they_do_not_come() -> None:
    driver = Driver()
    for number in (1, 3, 11, 13, 14):
        connect(driver, number, "one" if number < 10 else "two", gateway=number in (1, 11))
    for number in (3, 13):
        driver.join(number, "blob")
    assert not peers(driver, 3) and not peers(driver, 13)
    driver.join(1, "blob")
    assert set(peers(driver, 1)) == {3}
    driver.later(AWAITED + 0.1)
    driver.join(14, "blob")
    assert set(peers(driver, 14)) == {1, 3, 13}


def test_when_a_gateway_dies_another_one_takes_over_and_meets_the_other_site() -> None:
    driver = Driver()
    two_sites(driver)
    peers(driver, 12), peers(driver, 2)
    driver.disconnect(11)
    assert peers(driver, 12) == {1: carrier(1, "one")}
    driver.disconnect(1)
    assert peers(driver, 2) == {12: carrier(12, "two")}
    driver.disconnect(12)
    assert driver.swarm("blob").gateways == {"one": driver.swarms.state.nodes[node_id(2)]}


def test_a_gateway_that_has_the_blob_whole_stays_the_gateway() -> None:
    driver = Driver()
    two_sites(driver)
    driver.done(1, "blob")
    assert driver.swarm("blob").gateways["one"].id == node_id(1)
    driver.say(1, wire.Drops([digest("blob")]))
    assert driver.swarm("blob").gateways["one"].id == node_id(2)


def test_a_site_that_comes_later_gets_the_blob_through_gateways_that_hold_it() -> None:
    driver = Driver()
    for number in (1, 2, 3):
        connect(driver, number, "one", gateway=number == 2)
        driver.say(number, wire.Holds([digest("blob")]))
    for number in (11, 12):
        connect(driver, number, "two")
        peers(driver, number)
        driver.join(number, "blob")
    assert peers(driver, 11) == {2: carrier(2, "one")}
    assert set(peers(driver, 12)) == {11}


def test_who_misses_a_chunk_is_not_sent_to_another_site_unless_it_is_the_gateway() -> None:
    driver = Driver()
    two_sites(driver)
    (chunk, reader) = next((index, n) for index, n in driver.leased("blob").items() if n < 10)
    driver.got(reader, "blob", chunk)
    for number in (11, 13):
        peers(driver, number)
        driver.miss(number, "blob", chunk)
    assert set(peers(driver, 11)) == {1}
    assert not peers(driver, 13)


def test_what_the_gateway_brings_is_not_read_from_upstream_because_its_site_lacks_it_for_long() -> None:
    driver = Driver()
    two_sites(driver, far=True)
    for number in (1, 2, 3, 4):
        driver.done(number, "blob")
    for _ in range(20):
        for number in (12, 13, 14):
            driver.miss(number, "blob", 0, 1, 2)
        driver.later(1.0)
    assert not driver.leased("blob")
    for _ in range(20):
        driver.miss(11, "blob", 0, 1, 2)  # the gateway itself gets nothing
        driver.later(1.0)
    assert driver.leased("blob")


def test_a_site_far_from_upstream_reads_only_when_there_is_nobody_else() -> None:
    driver = Driver()
    two_sites(driver, far=True)
    assert set(driver.leased("blob").values()) <= {1, 2, 3, 4} and driver.leased("blob")
    for number in (1, 2, 3, 4):
        driver.disconnect(number)
    assert set(driver.leased("blob").values()) <= {11, 12, 13, 14} and driver.leased("blob")
    connect(driver, 1, "one")
    driver.join(1, "blob")
    for index, number in list(driver.leased("blob").items()):
        driver.half(number, "blob", index)
        driver.got(number, "blob", index)
    assert set(driver.leased("blob").values()) <= {1}


def test_a_far_site_reads_where_the_upstream_refuses_all_the_others() -> None:
    driver = Driver()
    for number in (1, 11, 12):
        connect(driver, number, "one" if number == 1 else "two", far=number > 10)
        driver.join(number, "blob")
    assert set(driver.leased("blob").values()) == {1}
    index = next(index for index, number in driver.leased("blob").items() if number == 1)
    driver.failed(1, "blob", index, status=403, final=True)
    driver.later(30.0)
    assert {11, 12} & set(driver.leased("blob").values())


def test_labels_that_make_no_sense_make_no_gateway() -> None:
    driver = Driver()
    for number, text in enumerate(["x", "-1", "700000", "65536", "²", ""], start=1):
        peer = PeerInfo(node_id(number), f"host-{number}", 7000)
        driver._take(driver.cluster.connected(driver.now, peer, "", "", {SITE: "one", GATEWAY: text}))
    assert not driver.swarms.state.sites
