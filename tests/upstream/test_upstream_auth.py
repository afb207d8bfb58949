"""401 and what follows: tokens by scope, Basic, and where credentials never go."""

import asyncio
import base64
from typing import Any

import pytest
from support.registry import BearerAuth, Call, FakeRegistry, Hold, Status, noise

from p2pdist.errors import UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamThrottled
from p2pdist.oci import Repository
from p2pdist.upstream import auth

ALICE = {"alice": "hunter2"}
BASIC_ALICE = "Basic " + base64.b64encode(b"alice:hunter2").decode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    """Every task has gone as far as it can without an answer from the network."""
    for _ in range(10):
        await asyncio.sleep(0)


# --- Bearer ---


async def test_an_anonymous_token_is_fetched_for_the_scope_and_used_for_every_request(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        image = fake.add_image("library/a", "latest", [noise(100)])
        client = await client_of(fake)
        await client.registry.get_manifest(client.repository, "latest")
        assert await client.read(image.layers[0], size=100) == noise(100)
        (asked,) = fake.requests("^/token")
        assert asked.query == 'service=fake, "the" service&scope=repository:library/a:pull'
        assert "Authorization" not in asked.headers
        assert [one.status for one in fake.requests("^/v2/")] == [401, 200, 200]


async def test_a_hundred_simultaneous_requests_fetch_one_token(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        image = fake.add_image("library/a", "latest", [noise(10, seed) for seed in range(100)])
        client = await client_of(fake)
        got = await asyncio.gather(*(client.read(layer, size=10) for layer in image.layers))
        assert got == [noise(10, seed) for seed in range(100)]
        assert len(fake.requests("^/token")) == 1


async def test_each_scope_has_its_own_token_and_a_new_one_is_asked_without_a_401_first(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        for name in ("library/a", "library/b"):
            fake.add_image(name, "latest", [])
        client = await client_of(fake)
        for name in ("library/a", "library/b", "library/a", "library/b"):
            await client.registry.get_manifest(Repository(fake.name, name), "latest")
        assert [one.status for one in fake.requests("^/v2/")] == [401, 200, 200, 200, 200]
        assert len(fake.requests("^/token")) == 2


async def test_the_scope_that_the_registry_names_is_the_one_that_is_asked_for(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.add_image("library/a", "latest", [])
        challenge = f'Bearer realm="{fake.url}/token",scope="repository:library/a:pull repository:mirror/a:pull"'
        fake.fail(Status(401, {"WWW-Authenticate": challenge}), path="^/v2/", times=1)
        client = await client_of(fake)
        assert (await client.registry.get_manifest(client.repository, "latest")).raw
        assert [one.query for one in fake.requests("^/token")] == [
            "scope=repository:library/a:pull repository:mirror/a:pull"
        ]


async def test_a_token_is_refreshed_before_it_expires(client_of) -> None:
    clock = Clock()
    async with FakeRegistry(auth=BearerAuth(expires_in=300, clock=clock)) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, clock=clock)
        for now in (1000, 1269, 1271):
            clock.now = now
            await client.registry.get_manifest(client.repository, "latest")
        assert len(fake.requests("^/token")) == 2
        assert [one.status for one in fake.requests("^/v2/")] == [401, 200, 200, 200]


async def test_a_token_without_a_life_is_taken_to_live_a_minute(client_of) -> None:
    clock = Clock()
    async with FakeRegistry(auth=BearerAuth(expires_in=None, clock=clock)) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, clock=clock)
        for now in (1000, 1053, 1055):
            clock.now = now
            await client.registry.get_manifest(client.repository, "latest")
        assert len(fake.requests("^/token")) == 2


@pytest.mark.parametrize("life", [-1, 0, True, "300", None, 1e308, [], {}])
async def test_a_nonsensical_life_of_a_token_does_no_harm(client_of, life: object) -> None:
    async def handler(_: Any) -> Any:
        from aiohttp import web

        return web.json_response({"token": "t", "expires_in": life})

    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.fail(Call(handler), path="^/token")
        client = await client_of(fake)
        with pytest.raises(UpstreamDenied):
            await client.registry.get_manifest(client.repository, "latest")


async def test_a_revoked_token_is_replaced_once_also_by_a_hundred_who_were_refused(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        image = fake.add_image("library/a", "latest", [noise(10, seed) for seed in range(100)])
        client = await client_of(fake)
        await client.registry.get_manifest(client.repository, "latest")
        fake.revoke_tokens()
        await asyncio.gather(*(client.read(layer, size=10) for layer in image.layers))
        assert len(fake.requests("^/token")) == 2


async def test_a_cancelled_first_asker_leaves_the_others_their_token(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake)
        hold = fake.fail(Hold(), path="^/token")
        loop = asyncio.get_running_loop()
        first = loop.create_task(client.registry.get_manifest(client.repository, "latest"))
        await hold.arrived.acquire()
        others = [loop.create_task(client.registry.get_manifest(client.repository, "latest")) for _ in range(3)]
        await settled()
        first.cancel()
        hold.release.set()
        assert len({one.digest for one in await asyncio.gather(*others)}) == 1
        assert len(fake.requests("^/token")) == 2
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_cancelled_waiter_does_not_cancel_the_flight(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake)
        hold = fake.fail(Hold(), path="^/token")
        loop = asyncio.get_running_loop()
        first = loop.create_task(client.registry.get_manifest(client.repository, "latest"))
        await hold.arrived.acquire()
        waiter = loop.create_task(client.registry.get_manifest(client.repository, "latest"))
        await settled()
        waiter.cancel()
        hold.release.set()
        assert (await first).raw
        assert len(fake.requests("^/token")) == 1


async def test_a_login_is_given_to_the_token_service_and_only_the_token_to_the_registry(client_of, login) -> None:
    async with FakeRegistry(auth=BearerAuth(users=ALICE, private=frozenset({"library/a"}))) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, login(fake))
        await client.registry.get_manifest(client.repository, "latest")
        (asked,) = fake.requests("^/token")
        assert asked.headers["Authorization"] == BASIC_ALICE
        assert all(one.headers.get("Authorization", "Bearer").startswith("Bearer") for one in fake.requests("^/v2/"))


async def test_an_identity_token_is_exchanged_by_post(client_of, login) -> None:
    door = BearerAuth(identity_tokens=frozenset({"id=&token"}), private=frozenset({"library/a"}))
    async with FakeRegistry(auth=door) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, login(fake, {"identitytoken": "id=&token"}))
        assert (await client.registry.get_manifest(client.repository, "latest")).raw
        (asked,) = fake.requests("^/token")
        assert asked.method == "POST" and b"grant_type=refresh_token" in asked.body and not asked.query


async def test_a_private_image_without_credentials_is_denied_and_the_text_says_where_they_were_looked_for(
    client_of, login
) -> None:
    async with FakeRegistry(auth=BearerAuth(private=frozenset({"library/a"}))) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake)
        with pytest.raises(UpstreamDenied) as caught:
            await client.registry.get_manifest(client.repository, "latest")
        assert caught.value.status == 401 and not caught.value.temporary
        assert len(fake.requests("^/v2/")) == 2  # not tried again and again


async def test_wrong_credentials_are_denied_by_name_without_the_password(client_of, login) -> None:
    async with FakeRegistry(auth=BearerAuth(users={"alice": "other"})) as fake:
        client = await client_of(fake, login(fake))
        with pytest.raises(UpstreamDenied, match="refuses the user 'alice'") as caught:
            await client.registry.get_manifest(client.repository, "latest")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(500), UpstreamError),
        (Status(429, {"Retry-After": "30"}), UpstreamThrottled),
        (Status(418), UpstreamInvalid),
        (Status(200, body=b"<html>"), UpstreamInvalid),
        (Status(200, body=b"[]"), UpstreamInvalid),
        (Status(200, body=b"{}"), UpstreamInvalid),
        (Status(200, body=b"[" * 200_000), UpstreamInvalid),
        (Status(200, body=b'{"token":"a\\r\\nX-Evil: 1"}'), UpstreamInvalid),
        (Status(200, body=b'{"token":"\\u00e4"}'), UpstreamInvalid),
        (Status(200, body=b'{"token":7}'), UpstreamInvalid),
        (Status(200, body=b'{"token":"' + b"a" * 70_000 + b'"}'), UpstreamInvalid),
        (Status(200, body=b" " * 300_000), UpstreamInvalid),
    ],
    ids=lambda value: None,
)
async def test_a_token_service_that_fails_or_lies_is_a_clear_error(client_of, fault: Status, error: type) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.add_image("library/a", "latest", [])
        fake.fail(fault, path="^/token")
        client = await client_of(fake)
        with pytest.raises(error) as caught:
            await client.registry.get_manifest(client.repository, "latest")
        assert type(caught.value) is error and len(str(caught.value)) < 500


async def test_those_who_wait_for_a_token_that_fails_fail_with_it(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake:
        fake.fail(Status(403), path="^/token")
        client = await client_of(fake)
        tasks = (client.registry.get_manifest(client.repository, "latest") for _ in range(20))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in results} == {UpstreamDenied}


async def test_tokens_do_not_pile_up_without_bound(client_of, monkeypatch) -> None:
    monkeypatch.setattr(auth, "MAX_TOKENS", 8)
    async with FakeRegistry(auth=BearerAuth()) as fake:
        client = await client_of(fake)
        authenticator = client.registry._authenticator
        for number in range(13):
            fake.manifests[f"r/{number}"] = {"latest": (b"{}", "application/json")}
            await client.registry.get_manifest(Repository(fake.name, f"r/{number}"), "latest")
        assert len(authenticator._tokens) == 8 and not authenticator._flights
