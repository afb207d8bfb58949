"""Wrong tokens have a limit, by the address they come from; right ones have none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.pki import JoinToken, Role, TlsCredentials, request_for
from tracker.app import RunningTracker, TrackerSettings
from tracker.guesses import Guesses

WRONG = "00" * 32


class Door:
    """A tracker's door. `knock` tries a secret from an address; the answer's status and Retry-After."""

    def __init__(self, running: RunningTracker, right: str) -> None:
        self.running = running
        self.right = right
        assert running._enrolment is not None
        self.enrolment = running._enrolment
        self.stranger = TlsCredentials()
        self.stranger.trust(self.enrolment._authority.pem)

    @asynccontextmanager
    async def host(self, address: str, connections: int = 1) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=connections)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield session

    async def ask(self, session: aiohttp.ClientSession, secret: str) -> tuple[int, str]:
        ask = {"request": request_for(Ed25519PrivateKey.generate()).decode(), "secret": secret}
        where, options = self.running.url + "/v1/enrol", {"server_hostname": Role.TRACKER.host}
        async with session.post(where, json=ask, ssl=self.stranger.client, **options) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Retry-After", "")

    async def knock(self, address: str, secret: str) -> int:
        async with self.host(address) as session:
            return (await self.ask(session, secret))[0]


@asynccontextmanager
async def door(**settings: Any) -> AsyncIterator[Door]:
    async with RunningTracker(TrackerSettings(port=0, **settings)) as running:
        yield Door(running, JoinToken.parse(await running.new_token(600)).secret.hex())


async def test_one_address_that_guesses_is_not_listened_to_any_more_and_the_others_are() -> None:
    async with door(wrong_tokens_per_address=2) as town:  # one more every 30 s
        async with town.host("127.0.0.2") as guesser:
            assert [await town.ask(guesser, WRONG) for _ in range(2)] == [(403, "")] * 2
            status, later = await town.ask(guesser, WRONG)
            assert status == 429 and 0 < int(later) <= 30
            assert (await town.ask(guesser, town.right))[0] == 429  # or a right guess would be told by it
        assert await town.knock("127.0.0.3", town.right) == 200
        assert (town.enrolment.refused, town.enrolment.limited) == (2, 2)
        shown = town.running._pages.render_metrics()[0].decode()
        assert "p2pdist_tracker_enrolments_limited_total 2.0" in shown


async def test_many_addresses_that_guess_have_a_limit_together_and_keep_nobody_out() -> None:
    async with door(wrong_tokens=2) as town:
        guessers = ["127.0.0.2", "127.0.0.3"]
        assert [await town.knock(address, WRONG) for address in guessers] == [403, 403]
        assert [await town.knock(address, WRONG) for address in guessers] == [429, 429]
        assert await town.knock("127.0.0.4", town.right) == 200
        assert [await town.knock("127.0.0.4", WRONG) for _ in range(2)] == [403, 429]


async def test_five_hundred_nodes_with_a_right_token_come_from_one_address_at_once() -> None:
    async with (
        door(wrong_tokens_per_address=1, wrong_tokens=1) as town,
        town.host("127.0.0.2", connections=20) as network,
    ):
        got = await asyncio.gather(*(town.ask(network, town.right) for _ in range(500)))
        assert got == [(200, "")] * 500
        assert town.enrolment.enrolled == 500


# --- the counting ---


def test_a_limit_is_so_many_in_a_minute_and_what_was_too_much_is_waited_for() -> None:
    guesses = Guesses(6, 1000, 0.0)
    for _ in range(6):
        assert guesses.wait("10.0.0.1", 0.0) == 0
        guesses.wrong("10.0.0.1", 0.0)
    assert guesses.wait("10.0.0.1", 0.0) == pytest.approx(10.0)
    assert guesses.wait("10.0.0.2", 0.0) == 0
    assert guesses.wait("10.0.0.1", 10.1) == 0
    for _ in range(6):  # all of them were on their way when it was reached
        guesses.wrong("10.0.0.1", 10.1)
    assert guesses.wait("10.0.0.1", 10.1) == pytest.approx(60.0, abs=0.5)


def test_addresses_of_one_ipv6_network_are_one_host() -> None:
    guesses = Guesses(1, 1000, 0.0)
    guesses.wrong("2001:db8::1", 0.0)
    assert guesses.wait("2001:db8::ffff:2", 0.0) > 0
    assert guesses.wait("2001:db8:0:1::1", 0.0) == 0


def test_beyond_the_limit_in_all_who_was_wrong_waits_for_a_minute() -> None:
    guesses = Guesses(100, 2, 0.0)
    for number in range(50):
        guesses.wrong(f"10.0.0.{number}", 0.0)
    assert guesses.wait("10.0.0.1", 20.0) == pytest.approx(40.0)
    assert guesses.wait("10.0.1.1", 20.0) == 0
    assert guesses.wait("10.0.0.1", 61.0) == 0


def test_no_number_of_addresses_fills_the_memory() -> None:
    guesses = Guesses(1, 1000, 0.0, most=3)
    for number in range(50):
        guesses.wrong(f"10.0.0.{number}", 0.0)
    assert [n for n in range(50) if guesses.wait(f"10.0.0.{n}", 0.0)] == [47, 48, 49]
