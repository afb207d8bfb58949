"""The BitTorrent tracker for exported images: what the BEPs say, and what a client could abuse."""

from __future__ import annotations

import ipaddress
import random
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from p2pdist.errors import ConfigError, InputError, OperationError
from p2pdist.protocol.bencode import decode
from tracker.announce import Announce, AnnounceRules, Announces, AnnounceServer, parse_announce, parse_scrape
from tracker.app import RunningTracker
from tracker.config import TrackerSettings, load

TORRENT = bytes(range(20))


def _announces(**rules: object) -> Announces:
    return Announces(AnnounceRules(**rules), random.Random(1))  # type: ignore[arg-type]


def _client(number: int, *, v6: bool = False, left: int | None = 1, **more: object) -> Announce:
    address = ipaddress.ip_address(f"fd00::{number:x}" if v6 else f"10.0.{number // 250}.{number % 250 + 1}")
    return Announce(TORRENT, b"%020d" % number, address, 6881, left, **more)  # type: ignore[arg-type]


def _peers(answer: bytes) -> set[tuple[str, int]]:
    body = decode(answer)
    assert isinstance(body, dict)
    found = set()
    for name, width in ((b"peers", 4), (b"peers6", 16)):
        packed = body[name]
        for start in range(0, len(packed), width + 2):
            entry = packed[start : start + width + 2]
            found.add((str(ipaddress.ip_address(entry[:width])), int.from_bytes(entry[width:], "big")))
    return found


def test_clients_of_both_address_families_learn_of_each_other_in_compact_form() -> None:
    announces = _announces()
    announces.announce(0.0, _client(1))
    announces.announce(0.0, _client(2, v6=True))
    assert _peers(announces.announce(1.0, _client(3))) == {("10.0.0.2", 6881), ("fd00::2", 6881)}


def test_without_compact_the_answer_is_a_list_with_peer_ids_unless_they_are_not_wanted() -> None:
    announces = _announces()
    announces.announce(0.0, _client(1))
    for no_peer_id, keys in ((False, {b"ip", b"port", b"peer id"}), (True, {b"ip", b"port"})):
        body = decode(announces.announce(0.0, _client(2, compact=False, no_peer_id=no_peer_id)))
        assert isinstance(body, dict)
        (peer,) = body[b"peers"]
        assert set(peer) == keys and peer[b"ip"] == b"10.0.0.2"


def test_a_client_that_stops_or_falls_silent_is_told_to_nobody() -> None:
    announces = _announces(interval=100.0)
    announces.announce(0.0, _client(1))
    announces.announce(0.0, _client(2))
    announces.announce(1.0, _client(1, event=b"stopped"))
    assert _peers(announces.announce(2.0, _client(3))) == {("10.0.0.3", 6881)}
    assert _peers(announces.announce(201.0, _client(4))) == {("10.0.0.4", 6881)}


def test_a_seed_is_told_of_no_seeds_and_the_counts_are_right() -> None:
    announces = _announces()
    for number in range(3):
        announces.announce(0.0, _client(number, left=0))
    announces.announce(0.0, _client(9, left=5))
    assert _peers(announces.announce(0.0, _client(4, left=0))) == {("10.0.0.10", 6881)}
    body = decode(announces.announce(0.0, _client(5, left=7, event=b"started")))
    assert isinstance(body, dict)
    assert (body[b"complete"], body[b"incomplete"]) == (4, 2)
    announces.announce(0.0, _client(5, left=0, event=b"completed"))
    scraped = decode(announces.scrape(0.0, [TORRENT, b"x" * 20]))
    assert scraped == {
        b"files": {
            TORRENT: {b"complete": 5, b"downloaded": 1, b"incomplete": 1},
            b"x" * 20: {b"complete": 0, b"downloaded": 0, b"incomplete": 0},
        }
    }


def test_a_client_gets_a_bounded_random_choice_and_no_more_than_it_wants() -> None:
    announces = _announces(numwant=10)
    for number in range(100):
        announces.announce(0.0, _client(number))
    choices = [frozenset(_peers(announces.announce(0.0, _client(500)))) for _ in range(5)]
    assert all(len(choice) == 10 for choice in choices) and len(set(choices)) > 1
    assert len(_peers(announces.announce(0.0, _client(500, numwant=3)))) == 3
    assert not _peers(announces.announce(0.0, _client(500, numwant=0)))


def test_torrents_and_clients_are_bounded_the_oldest_goes_first() -> None:
    announces = _announces(max_torrents=2, max_peers=3)
    for number in range(10):
        announces.announce(float(number), _client(number))
    assert _peers(announces.announce(10.0, _client(99))) == {("10.0.0.10", 6881), ("10.0.0.9", 6881)}
    for number in range(3):
        announces.announce(11.0, Announce(bytes([number]) * 20, b"p" * 20, ipaddress.ip_address("10.1.1.1"), 1))
    assert decode(announces.scrape(11.0, [TORRENT])) == {
        b"files": {TORRENT: {b"complete": 0, b"downloaded": 0, b"incomplete": 0}}
    }


def test_one_client_can_not_pose_as_many_by_changing_its_id() -> None:
    announces = _announces()
    for number in range(50):
        announces.announce(0.0, Announce(TORRENT, b"%020d" % number, ipaddress.ip_address("10.0.0.1"), 6881, 1))
    assert len(_peers(announces.announce(0.0, _client(7)))) == 1


def test_other_torrents_than_the_listed_ones_are_refused() -> None:
    announces = _announces(torrents=f" {TORRENT.hex()} , {'ab' * 20}")
    announces.announce(0.0, _client(1))
    with pytest.raises(InputError, match="does not serve"):
        announces.announce(0.0, Announce(b"z" * 20, b"p" * 20, ipaddress.ip_address("10.0.0.1"), 1))
    with pytest.raises(InputError, match="does not serve"):
        announces.scrape(0.0, [b"z" * 20])


@pytest.mark.parametrize("torrents", ["abc", "zz" * 20, "ab" * 19])
def test_a_list_of_torrents_that_is_none_is_refused_at_the_start(torrents: str) -> None:
    with pytest.raises(ConfigError, match=r"announce\.torrents"):
        _announces(torrents=torrents)


def test_an_announce_is_read_from_raw_bytes_and_its_address_from_the_connection() -> None:
    every = bytes(range(236, 256))
    query = (
        f"info_hash={quote_from_bytes(every, safe='')}&peer_id={quote_from_bytes(b'-XX-&=%+ 0123456789a', safe='')}"
        "&port=51413&uploaded=0&downloaded=0&left=0&event=started&numwant=-1&compact=1&ip=8.8.8.8"
    )
    said = parse_announce(query, "::ffff:10.2.3.4")
    assert said.info_hash == every and said.peer_id == b"-XX-&=%+ 0123456789a"
    assert (str(said.address), said.port, said.left, said.event) == ("10.2.3.4", 51413, 0, b"started")
    assert said.numwant is None and said.compact


@pytest.mark.parametrize(
    "query",
    [
        "",
        "info_hash=abc&peer_id=" + "p" * 20 + "&port=1",
        "info_hash=" + "a" * 20 + "&peer_id=" + "p" * 20,
        "info_hash=" + "a" * 20 + "&peer_id=" + "p" * 20 + "&port=0",
        "info_hash=" + "a" * 20 + "&peer_id=" + "p" * 20 + "&port=65536",
        "info_hash=" + "a" * 20 + "&peer_id=" + "p" * 20 + "&port=%D9%A1",
        "info_hash=" + "a" * 20 + "&peer_id=p&port=1",
        "info_hash=" + "a" * 20 + "&peer_id=" + "p" * 20 + "&port=1&event=paused",
        "x=" + "y" * 3000,
    ],
)
def test_a_malformed_announce_is_refused(query: str) -> None:
    with pytest.raises(InputError):
        parse_announce(query, "10.0.0.1")


@given(st.text(max_size=80))
def test_any_query_is_an_announce_or_refused(query: str) -> None:
    for read in (lambda: parse_announce(query, "10.0.0.1"), lambda: parse_scrape(query)):
        with suppress(InputError):
            read()


async def test_without_a_port_nothing_listens_and_with_one_clients_find_each_other_over_http(tmp_path: Path) -> None:
    settings = TrackerSettings(port=0, data_directory=str(tmp_path), insecure=True)
    async with RunningTracker(settings) as running:
        assert running.announce.port == 0
    free = _free_port()
    rules = AnnounceRules(port=free)
    async with RunningTracker(TrackerSettings(port=0, insecure=True, announce=rules)) as running:
        url = f"http://127.0.0.1:{running.announce.port}"
        query = f"info_hash={quote_from_bytes(TORRENT, safe='')}&port={{}}&left=1&peer_id=" + "p" * 20
        async with aiohttp.ClientSession() as session:
            for port in (6881, 6882):
                async with session.get(URL(f"{url}/announce?{query.format(port)}", encoded=True)) as answer:
                    assert answer.status == 200
                    peers = _peers(await answer.read())
            assert peers == {("127.0.0.1", 6881)}
            async with session.get(f"{url}/announce?port=1") as answer:
                assert answer.status == 200
                assert b"failure reason" in await answer.read()
            async with session.get(f"{url}/v1/status") as answer:
                assert answer.status == 404


def test_the_options_are_read_like_all_others(tmp_path: Path) -> None:
    path = tmp_path / "tracker.toml"
    path.write_text(f'[announce]\nport = 6969\nhost = "0.0.0.0"\ntorrents = "{TORRENT.hex()}"\n')
    rules = load(path, {"P2PDIST_TRACKER_ANNOUNCE_INTERVAL": "60"}).announce
    assert (rules.port, rules.host, rules.interval, rules.allowed) == (6969, "0.0.0.0", 60.0, {TORRENT})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = AnnounceServer(AnnounceRules(port=taken.getsockname()[1]), lambda: 0.0)
        with pytest.raises(OperationError, match=r"announce\.port"):
            async with server:
                pass
