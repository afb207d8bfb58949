"""What a fleet runs or was told to keep is never evicted, and only as long as it is that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.fleet import Fleet
from support.images import Image, descriptor, make_image, make_index, noise
from support.registry import FakeRegistry

from p2pdist.admin import AdminClient, AdminError
from p2pdist.cli.torrent import _import as import_into
from p2pdist.config import AgentConfig, NodeConfig, StoreConfig
from p2pdist.errors import DiskFull, InputError, StorageError
from p2pdist.oci import OCI_INDEX, Digest, ImagePattern, Repository, parse_manifest
from p2pdist.retention import Retention
from p2pdist.store import Store

KIB = 1024
APP = Repository("ghcr.io", "acme/app")


class Shop:
    """A store with a clock, its retention, and images brought as pulls bring them."""

    def __init__(
        self, store: Store, directory: Path, keep: tuple[str, ...], running: float, max_bytes: int | None
    ) -> None:
        self.now = 1000.0
        self.store = store
        patterns = [ImagePattern.parse(text) for text in keep]
        self.retention = Retention(store, directory / "keep.json", patterns, running, max_bytes, lambda: self.now)

    async def bring(self, image: Image, tag: str | None = None, *, pulled: bool = True, note: Repository = APP) -> None:
        self.now += 10.0
        await self.manifest(image.raw, image.media_type, tag, pulled=pulled, repository=note)
        for digest, data in image.blobs.items():
            await self.store.put(data, digest)

    async def manifest(
        self, raw: bytes, media_type: str, tag: str | None, *, pulled: bool, repository: Repository = APP
    ) -> Digest:
        digest = Digest.of(raw)
        await self.store.put(raw, digest)
        self.store.note(digest, str(repository), media_type)
        if tag is not None:
            self.store.set_tag(str(repository), tag, str(digest), self.now)
        self.retention.passed(repository, tag or str(digest), parse_manifest(raw, media_type), pulled=pulled)
        return digest

    def there(self, image: Image) -> bool:
        """Whole."""
        return all(self.store.find(digest) is not None for digest in (image.digest, *image.blobs))


@asynccontextmanager
async def shop(
    directory: Path, *, keep: tuple[str, ...] = (), running: float = 0.0, max_bytes: int | None = 400 * KIB
) -> AsyncIterator[Shop]:
    clock = {}
    store = await Store.open(directory / "data", max_bytes=max_bytes, clock=lambda: clock["shop"].now if clock else 0.0)
    try:
        made = clock["shop"] = Shop(store, directory, keep, running, max_bytes)
        await made.retention.load()
        yield made
    finally:
        await store.close()


def image(seed: int, size: int = 90 * KIB, **more: object) -> Image:
    return make_image([noise(size, seed)], **more)  # type: ignore[arg-type]


async def test_a_kept_image_outlives_whatever_is_pulled_after_it_and_others_do_not(tmp_path: Path) -> None:
    async with shop(tmp_path, keep=("ghcr.io/acme/*:stable",)) as here:
        kept, others = image(0), [image(seed) for seed in range(1, 8)]
        await here.bring(kept, "stable")
        for number, other in enumerate(others):
            await here.bring(other, f"v{number}")
        assert here.there(kept)
        assert [here.there(other) for other in others] == [False] * 4 + [True] * 3


async def test_a_tag_that_moves_takes_what_is_kept_along(tmp_path: Path) -> None:
    async with shop(tmp_path, keep=("ghcr.io/acme/app:stable",)) as here:
        old, new = image(0), image(1)
        await here.bring(old, "stable")
        await here.bring(new, "stable")
        await here.retention.look()
        for seed in range(2, 8):
            await here.bring(image(seed), f"v{seed}")
        assert here.there(new) and not here.there(old)


async def test_a_kept_image_is_index_children_layers_and_signatures(tmp_path: Path) -> None:
    async with shop(tmp_path, keep=("ghcr.io/acme/app:stable",)) as here:
        child, foreign = image(0), image(1, architecture="arm64")
        raw = make_index([child, foreign])
        index = await here.manifest(raw, OCI_INDEX, "stable", pulled=True)
        await here.bring(child)  # of this platform: asked for by its digest
        signature = make_image([b"simple signing"])
        await here.bring(signature, f"sha256-{child.digest.hex}.sig", pulled=False)
        subject = descriptor(raw, OCI_INDEX)
        attached = make_image([b"sbom"], subject=subject, artifact_type="application/spdx+json")
        await here.bring(attached, pulled=False)
        await here.retention.look()
        for seed in range(2, 9):
            await here.bring(image(seed), f"v{seed}")
        assert here.store.find(index) is not None
        assert here.there(child) and here.there(signature) and here.there(attached)


async def test_what_daemons_asked_for_lately_is_kept_the_latest_first_up_to_half_of_the_store(tmp_path: Path) -> None:
    async with shop(tmp_path, running=3600.0) as here:
        first, second, third = (image(seed) for seed in range(3))
        ahead = image(3)
        for number, one in enumerate((first, second, third)):
            await here.bring(one, f"r{number}")
        await here.bring(ahead, "ahead", pulled=False)  # used last, but nobody runs it
        await here.retention.look()
        for digest in (first.digest, *first.blobs, ahead.digest, *ahead.blobs):
            (await here.store.open_blob(digest)).close()  # type: ignore[union-attr]
        await here.bring(image(4, 150 * KIB), "big", pulled=False)
        assert here.there(second) and here.there(third)  # 180 of 200 KiB: the first one had no room
        assert not here.there(first)
        here.now += 3601.0
        await here.retention.look()
        assert here.store.usage().kept == 0


async def test_a_large_image_that_is_pulled_now_finds_room_though_others_ran_lately(tmp_path: Path) -> None:
    async with shop(tmp_path, running=3600.0) as here:
        for seed in range(4):
            await here.bring(image(seed, 50 * KIB), f"r{seed}")
        assert here.store.usage().kept > 100 * KIB
        large = image(9, 350 * KIB)
        here.now += 10.0
        await here.manifest(large.raw, large.media_type, "large", pulled=True)
        (layer,) = large.layers
        staging = await here.store.stage(layer, 350 * KIB, 64 * KIB)  # before anybody looks again
        await staging.close()


async def test_what_is_kept_by_command_is_kept_over_a_restart_until_it_is_removed(tmp_path: Path) -> None:
    kept = image(0)
    async with shop(tmp_path) as here:
        await here.retention.add("ghcr.io/acme/app:1")
        await here.retention.add("nginx", 60.0, "preheat x")
        await here.bring(kept, "1")
    async with shop(tmp_path) as here:
        assert [row["pattern"] for row in here.retention.listed()] == ["ghcr.io/acme/app:1", "docker.io/library/nginx"]
        assert here.retention.listed()[0]["bytes"] == len(kept.raw) + sum(map(len, kept.blobs.values()))
        here.now += 61.0
        await here.retention.look()
        assert [row["pattern"] for row in here.retention.listed()] == ["ghcr.io/acme/app:1"]
        for seed in range(1, 6):
            await here.bring(image(seed), f"v{seed}")
        assert here.there(kept)
        assert await here.retention.remove("ghcr.io/acme/app:1")
        assert not await here.retention.remove("ghcr.io/acme/app:1")
        for seed in range(6, 11):
            await here.bring(image(seed), f"v{seed}")
        assert not here.there(kept)


async def test_a_list_that_cannot_be_read_stops_the_start_instead_of_being_forgotten(tmp_path: Path) -> None:
    (tmp_path / "keep.json").write_text("[{]")
    with pytest.raises(StorageError, match=r"keep\.json"):
        async with shop(tmp_path):
            pass


async def test_more_is_not_kept_than_can_be_listed_and_what_ends_soonest_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pdist.retention.MAX_KEEPS", 3)
    async with shop(tmp_path) as here:
        await here.retention.add("nginx:1")
        await here.retention.add("nginx:2", 60.0, "preheat a")
        await here.retention.add("nginx:3", 50.0, "preheat b")
        await here.retention.add("nginx:4", 70.0, "preheat c")
        await here.retention.add("nginx:5")
        assert [row["pattern"][-1] for row in here.retention.listed()] == ["1", "4", "5"]
        await here.retention.add("nginx:4")
        with pytest.raises(InputError, match="remove some"):
            await here.retention.add("nginx:6", 5.0)


async def test_a_store_full_of_what_is_kept_says_so_and_takes_nothing_away(tmp_path: Path) -> None:
    async with shop(tmp_path, keep=("ghcr.io/acme/app",), max_bytes=200 * KIB) as here:
        kept = [image(0), image(1)]
        for number, one in enumerate(kept):
            await here.bring(one, str(number))
        await here.retention.look()
        with pytest.raises(DiskFull, match="keep fewer images"):
            await here.store.put(noise(50 * KIB, 9), Digest.of(noise(50 * KIB, 9)))
        assert all(map(here.there, kept))
        usage = here.store.usage()
        assert (usage.refused, usage.kept) == (1, usage.stored)


async def test_an_import_without_an_agent_makes_no_room_at_the_cost_of_what_is_kept(tmp_path: Path) -> None:
    kept, other = image(0), image(1, 150 * KIB)
    async with shop(tmp_path, max_bytes=None) as here:
        await here.bring(kept, "stable")
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in {**other.blobs, other.digest: other.raw}.items():
        (blobs / digest.hex).write_bytes(data)
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    root = descriptor(other.raw, other.media_type)
    (tmp_path / "layout" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [root]}))
    config = AgentConfig(
        node=NodeConfig(name="n", data_dir=tmp_path / "data", max_store_bytes=200 * KIB),
        store=StoreConfig(keep=("ghcr.io/acme/app:stable",)),
    )
    with pytest.raises(DiskFull, match="keep fewer images"):
        await import_into(config, tmp_path / "layout", "ghcr.io/acme/other:1")
    async with shop(tmp_path, max_bytes=None) as here:
        assert here.there(kept)


async def test_an_agent_whose_store_is_full_of_kept_images_sends_daemons_to_the_upstream_and_shows_why(
    tmp_path: Path,
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        kept = registry.add_image("app/a", "kept", [noise(700 * KIB, 0)])
        other = registry.add_image("app/a", "other", [noise(700 * KIB, 1)])
        node = await fleet.start(
            "n",
            node=NodeConfig(name="n", data_dir=tmp_path / "n", max_store_bytes=1024 * KIB, shutdown_seconds=1.0),
            store=StoreConfig(keep=(f"{registry.name}/app/*:kept",)),
        )
        await fleet.pull(node, kept, "kept")
        assert (await fleet.get(node, "manifests", "other"))[0] == 200
        status, body = await fleet.get(node, "blobs", other.layers[0])
        assert (status, json.loads(body)["errors"][0]["code"]) == (404, "BLOB_UNKNOWN")  # the daemon asks the upstream
        await fleet.pull(node, kept, "kept")
        shown = node.agent.status()["store"]
        assert shown["full"] >= 1 and shown["kept_bytes"] >= 700 * KIB
        async with AdminClient(node.config.admin_socket) as client:
            text = await client.metrics()
            assert "p2pdist_store_full_total 0.0" not in text and "p2pdist_store_full_total" in text
            assert "p2pdist_store_kept_bytes" in text


async def test_keeping_over_the_admin_socket(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        pulled = registry.add_image("app/a", "1", [noise(100 * KIB, 0)])
        node = await fleet.start(store=StoreConfig(keep=("nginx:stable",)))
        await fleet.pull(node, pulled)
        async with AdminClient(node.config.admin_socket) as client:
            assert await client.keep(f"{registry.name}/app/a:1") == f"{registry.name}/app/a:1"
            assert await client.keep("redis") == "docker.io/library/redis"
            rows = {row["pattern"]: row for row in await client.kept()}
            assert rows["docker.io/library/nginx:stable"]["origin"] == "the configuration"
            assert rows[f"{registry.name}/app/a:1"]["blobs"] == 3
            await client.keep("redis", remove=True)
            with pytest.raises(AdminError, match="not kept"):
                await client.keep("redis", remove=True)
            with pytest.raises(AdminError, match="wanted a digest"):
                await client.keep("user:pw@host/x y")
        assert (node.config.node.data_dir / "keep.json").exists()
