"""A private repository behind a real token service: who gets what from agents that have all of it in their stores."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.fleet import Fleet, Node
from support.registry import BasicAuth, BearerAuth, FakeRegistry, Image, noise

from p2pdist.config import UpstreamConfig
from p2pdist.upstream.challenge import parse_challenges

MIB = 1 << 20
USERS = {"alice": "wonder", "mallory": "malice"}


def login(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{USERS[user]}".encode()).decode()


def credentials(directory: Path, registry: FakeRegistry, user: str = "alice") -> Path:
    file = directory / f"config-{user}.json"
    file.write_text(json.dumps({"auths": {registry.name: {"username": user, "password": USERS[user]}}}))
    return file


@asynccontextmanager
async def cluster(
    directory: Path, auth: Any = None, **upstream: Any
) -> AsyncIterator[tuple[FakeRegistry, Fleet, Image, Node, Node]]:
    """A node with alice's credentials and one without any; the first has pulled the private image app/a."""
    auth = auth or BearerAuth(users=USERS, private=frozenset({"app/a"}))
    async with FakeRegistry(auth=auth, linked=True) as registry, Fleet(directory, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1), noise(3000, 2)])
        registry.add_image("open/b", "1", [noise(2000, 3)])
        file = credentials(directory, registry)
        rich = await fleet.start(upstream=UpstreamConfig(credentials_file=file, **upstream))
        poor = await fleet.start(upstream=UpstreamConfig(**upstream))
        await fleet.pull(rich, image)
        yield registry, fleet, image, rich, poor


async def token(fleet: Fleet, challenge: str, user: str) -> str:
    """What containerd does with a challenge: its user's login, sent to the realm that it names."""
    (parsed,) = parse_challenges([challenge])
    realm, scope = parsed.parameters["realm"], parsed.parameters["scope"]
    async with fleet.client.get(realm, params={"scope": scope}, headers={"Authorization": login(user)}) as answer:
        return "Bearer " + (await answer.json())["token"]


async def status(fleet: Fleet, node: Node, kind: str, target: object, repository: str = "app/a", **options: Any) -> int:
    method = options.pop("method", "GET")
    async with fleet.client.request(method, node.url + fleet.path(kind, target, repository), **options) as answer:
        await answer.read()
        return answer.status


async def test_a_private_image_is_given_to_nobody_who_can_not_pull_it_himself(tmp_path: Path) -> None:
    """By tag, by digest, by HEAD, by Range, by its parts, from the node that has it and from one that could get it."""
    async with cluster(tmp_path) as (registry, fleet, image, rich, poor):
        challenge = ""
        for target in ("1", image.digest):
            for method in ("GET", "HEAD"):
                async with fleet.client.request(method, poor.url + fleet.path("manifests", target)) as answer:
                    assert answer.status == 401, await answer.text()
                    challenge = answer.headers["WWW-Authenticate"]
        assert f'realm="{registry.url}/token"' in challenge and 'scope="repository:app/a:pull"' in challenge
        mallory = {"Authorization": await token(fleet, challenge, "mallory")}
        registry._door._tokens[mallory["Authorization"].removeprefix("Bearer ")] = ("repository:open/b:pull", 1e12)
        for node, headers in ((poor, {}), (poor, mallory), (rich, mallory), (rich, {"Authorization": "Basic eDp5"})):
            assert await status(fleet, node, "manifests", "1", headers=headers) == 401
            assert await status(fleet, node, "referrers", image.digest, headers=headers) == 401
            assert await status(fleet, node, "tags", "list", headers=headers) == 401
            for blob in image.blobs:
                assert await status(fleet, node, "blobs", blob, headers=headers) == 404
                assert await status(fleet, node, "blobs", blob, headers=headers, method="HEAD") == 404
                ranged = {**headers, "Range": "bytes=0-9"}
                assert await status(fleet, node, "blobs", blob, headers=ranged) == 404
        alice = {"Authorization": await token(fleet, challenge, "alice")}
        for node in (poor, rich):
            assert await fleet.get(node, "manifests", "1", headers=alice) == (200, image.raw)
            for blob, data in image.blobs.items():
                assert await fleet.get(node, "blobs", blob, headers=alice) == (200, data)
        assert await status(fleet, poor, "blobs", image.layers[0]) == 404  # now it has them, too


async def test_a_blob_of_a_private_repository_is_not_had_by_the_name_of_a_public_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_registry, fleet, image, rich, _):
        assert await status(fleet, rich, "manifests", "1", "open/b") == 200
        for kind, target in (("blobs", image.layers[0]), ("manifests", image.digest), ("blobs", image.digest)):
            for method in ("GET", "HEAD"):
                assert await status(fleet, rich, kind, target, "open/b", method=method) == 404
        assert (await fleet.get(rich, "blobs", image.layers[0]))[0] == 200


async def test_what_the_upstream_takes_back_is_gone_here_too_within_the_time_that_is_set(tmp_path: Path) -> None:
    async with cluster(tmp_path, rights_seconds=0.2) as (registry, fleet, image, rich, _):
        registry._door.auth = BearerAuth(users={}, private=frozenset({"app/a"}))
        registry.revoke_tokens()
        await asyncio.sleep(0.3)
        assert await status(fleet, rich, "manifests", image.digest) == 401
        for blob in image.blobs:
            assert await status(fleet, rich, "blobs", blob) == 404
        assert rich.agent.status()["rights"]["refused"] > 0


async def test_a_large_blob_that_only_the_client_may_read_is_read_with_its_token(tmp_path: Path) -> None:
    async with (
        FakeRegistry(auth=BearerAuth(users=USERS, private=frozenset({"app/a"})), linked=True) as registry,
        Fleet(tmp_path, registry, tracked=False) as fleet,
    ):
        image = registry.add_image("app/a", "1", [noise(MIB, 1), noise(3000, 2)])
        poor = await fleet.start()
        async with fleet.client.get(poor.url + fleet.path("manifests", "1")) as answer:
            alice = {"Authorization": await token(fleet, answer.headers["WWW-Authenticate"], "alice")}
        assert await fleet.get(poor, "manifests", "1", headers=alice) == (200, image.raw)
        for blob, data in image.blobs.items():
            assert await fleet.get(poor, "blobs", blob, headers=alice) == (200, data)
        reads = registry.requests("/blobs/", "GET")
        assert {one.headers.get("Authorization") for one in reads if one.status == 200} == {alice["Authorization"]}


async def test_a_warm_pull_asks_the_upstream_who_may_read_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (registry, fleet, image, rich, _):
        before = len(registry.requests("."))
        for _ in range(3):
            assert (await fleet.get(rich, "manifests", image.digest))[0] == 200
            for blob in image.blobs:
                assert (await fleet.get(rich, "blobs", blob))[0] == 200
        assert len(registry.requests(".")) == before


async def test_a_registry_with_passwords_never_makes_the_agent_ask_for_one(tmp_path: Path) -> None:
    """Docker and containerd answer a 401 for Basic with their user's registry password: to whoever asked, to us."""
    async with cluster(tmp_path, BasicAuth(USERS)) as (_registry, fleet, image, rich, poor):
        for kind, target in (("manifests", "1"), ("manifests", image.digest), ("blobs", image.layers[0])):
            async with fleet.client.get(poor.url + fleet.path(kind, target)) as answer:
                assert answer.status == 404 and "WWW-Authenticate" not in answer.headers
        for node in (rich, poor):  # who gives one unasked is judged by it
            assert await status(fleet, node, "manifests", "1", headers={"Authorization": login("mallory")}) == 200
            assert await status(fleet, node, "manifests", "1", headers={"Authorization": "Basic eDp5"}) == 404


async def test_an_upstream_that_is_gone_takes_nothing_from_those_it_knew(tmp_path: Path) -> None:
    async with cluster(tmp_path, rights_seconds=0.2) as (registry, fleet, image, rich, poor):
        await registry.__aexit__(None, None, None)
        await asyncio.sleep(0.3)
        assert await fleet.get(rich, "manifests", image.digest) == (200, image.raw)
        for blob, data in image.blobs.items():
            assert await fleet.get(rich, "blobs", blob) == (200, data)
        assert await status(fleet, poor, "manifests", image.digest) == 404
        assert rich.agent.status()["rights"]["unreachable"] > 0


async def test_a_rollout_without_credentials_asks_who_may_read_once_for_all_nodes(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1)])
        nodes = [await fleet.start() for _ in range(4)]
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert len(registry.requests("/manifests/", "HEAD")) <= 2
