"""The deny list: refused to daemons with the reason, ended where it is under way, dropped, and served to no peer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from preheat_kit import Operator
from support.fleet import Fleet, Node, until
from support.images import descriptor
from support.registry import FakeRegistry, Hold, Image, noise

from p2pdist.admin import AdminClient
from p2pdist.denylist import Denials
from p2pdist.oci import Digest, ImagePattern, Repository
from p2pdist.protocol import messages as wire
from p2pdist.protocol.limits import MAX_DENIED
from tracker import deny
from tracker.deny import DenyBook
from tracker.preheats import PreheatRules

MIB = 1 << 20
WHY = "CVE-2026-1: runs as root"


def image_of(registry: FakeRegistry, tag: str, *sizes: int, seed: int = 0, **more: Any) -> Image:
    return registry.add_image("app/a", tag, [noise(size, seed + place) for place, size in enumerate(sizes)], **more)


async def deny_now(fleet: Fleet, subject: str, why: str = WHY) -> None:
    """As `p2pdist-tracker deny add` does, and until every node knows."""
    assert fleet.tracker is not None
    pattern = ImagePattern.parse(subject)
    await deny.deny(fleet.tracker.state, pattern, why, time.time())
    await until(lambda: all(knows(node, pattern.text) for node in fleet.nodes))


def knows(node: Node, subject: str) -> bool:
    return any(entry.subject == subject for entry in node.agent._orders.denied.denials.entries)


def stored(node: Node, *digests: Digest) -> list[bool]:
    return [node.agent._store.find(digest) is not None for digest in digests]


async def refused(fleet: Fleet, node: Node, kind: str, target: object) -> bool:
    """Whether a daemon is refused with the OCI error and the reason."""
    status, body = await fleet.get(node, kind, target)
    if status == 200:
        return False
    (error,) = json.loads(body)["errors"]
    assert (status, error["code"]) == (403, "DENIED"), (status, body)
    assert WHY in error["message"]
    return True


@pytest.mark.parametrize("by", ["digest", "tag", "pattern", "layer"])
async def test_a_denied_image_is_refused_dropped_and_served_to_nobody_within_seconds(by: str, tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "bad", MIB, 300_000)
        shared = [bad.blobs[bad.layers[1]], noise(200_000, 9)]
        good = registry.add_image("app/a", "good", shared)
        nodes = [await fleet.start() for _ in range(2)]
        for node in nodes:
            await fleet.pull(node, bad, "bad")
            await fleet.pull(node, good, "good")
        await until(lambda: all(node.agent._swarms.seeds for node in nodes))
        name = f"{registry.name}/app/a"
        subject = {
            "digest": str(bad.digest), "tag": f"{name}:bad", "pattern": f"{registry.name}/app/*",
            "layer": str(bad.layers[0]),
        }[by]  # fmt: skip
        await deny_now(fleet, subject)
        gone = [bad.layers[0]] if by == "layer" else [bad.digest, bad.config, bad.layers[0]]
        for node in nodes:
            await until(lambda node=node: not any(stored(node, *gone)))
            assert await refused(fleet, node, "manifests", "bad")
            assert await refused(fleet, node, "manifests", bad.digest)
            whole = by == "pattern"
            assert await refused(fleet, node, "manifests", "good") is whole
            if whole or by == "layer":
                assert await refused(fleet, node, "blobs", bad.layers[0])
            else:  # another image needs that layer
                assert all(stored(node, good.digest, *good.layers))
                await fleet.pull(node, good, "good")
            head = await fleet.client.head(node.url + fleet.path("manifests", "bad"))
            assert head.status == 403 and WHY in str(head.reason)
            await until(lambda node=node: not any(stored(node, *gone)))  # also what was looked at to say no
        names = {exchange.name for node in nodes for exchange in node.agent._swarms._seeds._open.values()}
        assert str(bad.layers[0]) not in names


async def test_a_child_of_a_denied_index_is_refused_by_its_own_digest_and_a_denied_child_in_any_index(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        amd, arm = (image_of(registry, tag, 90_000, seed=len(tag), architecture=tag) for tag in ("amd64", "arm64x"))
        other = image_of(registry, "other", 80_000, seed=7)
        index = registry.add_index("app/a", "both", [amd, arm])
        registry.add_index("app/a", "another", [other, arm])
        node = await fleet.start()
        assert (await fleet.get(node, "manifests", "both"))[0] == 200
        await deny_now(fleet, str(index))
        assert await refused(fleet, node, "manifests", index)
        assert await refused(fleet, node, "manifests", amd.digest)
        assert not await refused(fleet, node, "manifests", other.digest)
        await deny_now(fleet, str(other.digest))
        assert not await refused(fleet, node, "manifests", "another")  # its other platforms are free
        assert await refused(fleet, node, "manifests", other.digest)


async def test_a_tag_that_resolves_to_a_denied_digest_is_refused_and_what_a_denied_tag_names_by_its_digest(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "1", 90_000)
        registry.add_manifest("app/a", bad.raw, bad.media_type, "alias")
        node = await fleet.start()
        await deny_now(fleet, str(bad.digest))
        assert await refused(fleet, node, "manifests", "alias")
        worse = image_of(registry, "2", 80_000, seed=5)
        await deny_now(fleet, f"{registry.name}/app/a:2")
        assert await refused(fleet, node, "manifests", "2")
        # a daemon that was refused the tag asks its registry, and comes back with the digest
        assert await refused(fleet, node, "manifests", worse.digest)


async def test_a_pull_under_way_ends_when_its_image_is_denied(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "1", 3 * MIB)
        node = await fleet.start()
        assert (await fleet.get(node, "manifests", "1"))[0] == 200
        hold = registry.fail(Hold(), path="/blobs/", method="GET")
        pull = asyncio.ensure_future(fleet.get(node, "blobs", bad.layers[0]))
        await hold.arrived.acquire()
        await deny_now(fleet, str(bad.digest))
        status, _ = await pull
        assert status == 403
        hold.release.set()
        await until(lambda: not node.agent.status()["transfers"])
        await until(lambda: not any(stored(node, bad.digest, *bad.blobs)) and node.agent._store.partials() == [])


async def test_a_denied_layer_is_not_brought_along_with_the_others_of_its_image(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "1", 300_000, 200_000)
        node = await fleet.start()
        assert (await fleet.get(node, "manifests", "1"))[0] == 200  # its plan is known now
        await deny_now(fleet, str(bad.layers[0]))
        assert (await fleet.get(node, "blobs", bad.layers[1]))[0] == 200
        assert stored(node, *bad.layers) == [False, True]
        assert registry.requests(str(bad.layers[0]), "GET") == []


async def test_a_denied_image_does_not_come_in_by_import(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "1", 90_000)
        node = await fleet.start()
        await deny_now(fleet, f"{registry.name}/app/a:1")
        layout = tmp_path / "layout"
        (layout / "blobs" / "sha256").mkdir(parents=True)
        for digest, data in {**bad.blobs, bad.digest: bad.raw}.items():
            (layout / "blobs" / "sha256" / digest.hex).write_bytes(data)
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        root = descriptor(bad.raw, bad.media_type)
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [root]}))
        async with AdminClient(node.config.admin_socket, timeout_seconds=60.0) as client:
            await client.import_image(layout, f"{registry.name}/app/a:1")
        await until(lambda: not any(stored(node, bad.digest, *bad.blobs)))


async def test_the_list_holds_while_no_tracker_answers_and_over_a_restart(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        bad = image_of(registry, "1", 90_000)
        node = await fleet.start()
        await deny_now(fleet, str(bad.digest))
        file = node.config.node.data_dir / "deny.json"
        await until(lambda: file.exists() and str(bad.digest) in file.read_text())
        assert fleet.tracker is not None
        await fleet.stop(node)
        fleet.nodes.remove(node)
        await fleet.stop_tracker()
        again = await fleet.run(node.config)
        assert await refused(fleet, again, "manifests", "1")
        assert not any(stored(again, *bad.blobs))


async def test_what_is_taken_off_the_list_can_be_pulled_again_also_by_nodes_that_were_away(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, "1", 90_000)
        nodes = [await fleet.start() for _ in range(2)]
        await deny_now(fleet, f"{registry.name}/app/a:1")
        for node in nodes:
            assert await refused(fleet, node, "manifests", "1")
        away = nodes.pop()
        await until((away.config.node.data_dir / "deny.json").exists)
        await fleet.stop(away)
        fleet.nodes.remove(away)
        assert fleet.tracker is not None
        assert await deny.allow(fleet.tracker.state, ImagePattern.parse(f"{registry.name}/app/a:1"))
        nodes.append(await fleet.run(away.config))
        for node in nodes:
            await until(lambda node=node: not node.agent._orders.denied.denials.entries)
            await fleet.pull(node, image)
            assert (await fleet.get(node, "manifests", image.digest))[0] == 200  # nothing learnt from it is left


async def test_a_preheat_of_a_denied_image_fails_with_the_reason(tmp_path: Path) -> None:
    rules = {"preheat": PreheatRules(settle=0.0)}
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, settings=rules) as fleet:
        bad = image_of(registry, "1", 90_000)
        node = await fleet.start()
        await deny_now(fleet, str(bad.digest))
        operator = Operator(fleet)
        job = await operator.finished((await operator.order(f"{registry.name}/app/a:1"))["id"])
        assert job["state"] == "failed" and WHY in job["nodes"][0]["error"]
        assert not any(stored(node, *bad.blobs))


# --- pure ---------------------------------------------------------------------------------------------------------


def test_agents_that_know_the_list_are_told_the_difference_and_newcomers_all_of_it_in_parts() -> None:
    book = DenyBook()
    assert book.whole() == []  # not read yet: nobody is told that nothing is denied
    entries = {f"ghcr.io/a/{number}": "why" for number in range(70)}
    told = book.replace(entries)
    assert [(len(part.entries), part.final) for part in told] == [(32, False), (32, False), (6, True)]
    del entries["ghcr.io/a/1"]
    entries["ghcr.io/a/2"] = "another reason"
    assert book.replace(entries) == [
        wire.DenyChange([], ["ghcr.io/a/1"]),
        wire.DenyChange([wire.Denied("ghcr.io/a/2", "another reason")]),
    ]
    assert book.replace(entries) == []
    assert book.replace({}) == [wire.DenyList([], final=True)]


def test_a_list_in_parts_is_in_force_with_its_last_one_and_replaces_what_was_there() -> None:
    from p2pdist.denylist import DenyList

    class Nothing:
        denied: Any = None
        nodes: Mapping[Digest, Any] = {}

        def noted(self) -> dict[Any, Any]:
            return {}

        tags = noted

    denied = DenyList(Nothing(), Nothing(), Nothing(), Path("nowhere"))  # type: ignore[arg-type]
    repository = Repository("ghcr.io", "a")
    denied.heard(wire.DenyList([wire.Denied("ghcr.io/a:1", "old")]))
    assert denied.denials.find(str(repository), "1", None) is not None
    denied.heard(wire.DenyList([wire.Denied("ghcr.io/a:2", "why")], final=False))
    assert denied.denials.find(str(repository), "2", None) is None
    denied.heard(wire.DenyList([wire.Denied("ghcr.io/a:3", "why")]))
    found = [bool(denied.denials.find(str(repository), tag, None)) for tag in "123"]
    assert found == [False, True, True]
    denied.heard(wire.DenyChange([wire.Denied("ghcr.io/a:4", "why")], ["ghcr.io/a:2"]))
    assert [bool(denied.denials.find(str(repository), tag, None)) for tag in "234"] == [False, True, True]


def test_an_entry_that_is_not_understood_and_a_list_that_is_too_long_stop_nobody() -> None:
    denials = Denials()
    denials.add(wire.Denied("not an image!", "why"))
    assert len(denials) == 0
    for number in range(MAX_DENIED + 5):
        denials.add(wire.Denied(f"ghcr.io/a:{number}", "why"))
    assert len(denials) == MAX_DENIED
    denials.add(wire.Denied("ghcr.io/a:0", "another reason"))
    found = denials.find("ghcr.io/a", "0", None)
    assert found is not None and found.why == "another reason"
