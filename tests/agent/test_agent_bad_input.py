"""What may come from outside, and does: a clear answer, nothing lost, nothing unproved handed out."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from aiohttp import web
from support.fleet import Fleet, until
from support.registry import (
    Call,
    Corrupt,
    Cut,
    Endless,
    FakeRegistry,
    Image,
    Stall,
    Status,
    WrongLength,
    noise,
)

from p2pdist.config import MirrorConfig, NodeConfig
from p2pdist.oci import Repository

MIB = 1 << 20


def image_of(registry: FakeRegistry, *sizes: int) -> Image:
    return registry.add_image("app/a", "1", [noise(size, seed) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("size", [40_000, 2 * MIB])
@pytest.mark.parametrize(
    "fault", [Corrupt(), Endless(), WrongLength(10), WrongLength(-10)], ids=lambda f: type(f).__name__
)
async def test_wrong_bytes_from_upstream_never_reach_a_daemon(tmp_path: Path, size: int, fault: object) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, size)
        node = await fleet.start(mirror=MirrorConfig(host="127.0.0.9", port=0, decide_deadline_seconds=3.0))
        assert (await fleet.get(node, "manifests", "1"))[0] == 200
        registry.fail(fault, path=str(image.layers[0]), method="GET")  # type: ignore[arg-type]
        status, body = await fleet.get(node, "blobs", image.layers[0])
        assert status == 404 or body == image.blobs[image.layers[0]], (status, len(body))
        registry.heal()
        await until(lambda: not node.agent.status()["transfers"], 30)
        await asyncio.sleep(0)
        status, body = await fleet.get(node, "blobs", image.layers[0])
        assert (status, body) == (200, image.blobs[image.layers[0]])


async def test_a_body_cut_by_the_upstream_is_resumed(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 4 * MIB)
        node = await fleet.start()
        registry.fail(Cut(after=1_500_000), path="/blobs/", method="GET", times=2)
        await fleet.pull(node, image)
        assert registry.bytes_sent(image.layers[0]) <= 1.1 * 4 * MIB


async def test_a_false_attestation_costs_bandwidth_but_no_wrong_byte(tmp_path: Path) -> None:
    """One node reads wrong bytes and attests them: every node ends with the right ones."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 2 * MIB)
        nodes = [await fleet.start() for _ in range(3)]
        registry.fail(Corrupt(at=100), path=str(image.layers[0]), method="GET", times=1)
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))


async def test_a_peer_whose_disk_lies_is_refused_and_the_blob_comes_from_elsewhere(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 4 * MIB)
        first, second = await fleet.start(), await fleet.start()
        await fleet.pull(first, image)
        file = next(path for path in first.config.node.data_dir.rglob(f"*{image.layers[0].hex}*") if path.is_file())
        file.chmod(0o600)
        with file.open("r+b") as handle:
            handle.seek(2 * MIB)
            handle.write(b"\0" * 100)
        await fleet.pull(second, image)


async def test_a_file_that_rots_on_disk_is_found_and_fetched_again(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        image = image_of(registry, MIB)
        node = await fleet.start()
        await fleet.pull(node, image)
        file = next(path for path in node.config.node.data_dir.rglob(f"*{image.layers[0].hex}*") if path.is_file())
        file.chmod(0o600)
        file.write_bytes(b"\0" * MIB)
        await fleet.pull(node, image)
        assert registry.bytes_sent(image.layers[0]) == 2 * MIB


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"[" * 100_000, b'{"schemaVersion":2}'])
async def test_a_manifest_that_is_none_is_not_served(tmp_path: Path, body: bytes) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_manifest("app/a", body, "application/vnd.oci.image.manifest.v1+json", "1")
        node = await fleet.start()
        status, answer = await fleet.get(node, "manifests", "1")
        assert status == 404
        assert b"MANIFEST_UNKNOWN" in answer


@pytest.mark.parametrize("digest", ["md5:" + "a" * 32, "sha256:" + "A" * 64, "sha256:abc", "sha256:" + "g" * 64])
async def test_a_digest_that_is_none_is_refused_without_asking_anybody(tmp_path: Path, digest: str) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        node = await fleet.start()
        assert (await fleet.get(node, "blobs", digest))[0] in (400, 404)
        assert registry.log == []


async def test_a_registry_outside_the_allow_list_is_never_contacted(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, FakeRegistry() as other, Fleet(tmp_path, registry) as fleet:
        other.add_image("app/a", "1", [noise(100)])
        node = await fleet.start()
        async with fleet.client.get(f"{node.url}/v2/app/a/manifests/1?ns={other.name}") as answer:
            assert answer.status == 404
        assert other.log == []


async def test_a_hundred_requests_for_one_blob_are_one_flight(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 4 * MIB)
        node = await fleet.start()
        answers = await asyncio.gather(*(fleet.get(node, "blobs", image.layers[0]) for _ in range(100)))
        assert {(status, len(body)) for status, body in answers} == {(200, 4 * MIB)}
        assert registry.bytes_sent(image.layers[0]) <= 4 * MIB


async def test_open_ended_ranges_that_are_reset_share_one_flight(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        data = noise(48 * MIB, 1)
        image = registry.add_image("app/a", "1", [data])
        node = await fleet.start()

        async def part(start: int) -> None:
            headers = {"Range": f"bytes={start}-"}
            url = node.url + fleet.path("blobs", image.layers[0])
            async with fleet.client.get(url, headers=headers) as answer:
                assert answer.status == 206
                assert answer.headers["Content-Range"] == f"bytes {start}-{len(data) - 1}/{len(data)}"
                want = min(8 * MIB, len(data) - start)
                assert await answer.content.readexactly(want) == data[start : start + want]
                answer.close()

        await asyncio.gather(*(part(n * 2 * MIB) for n in range(20)))
        assert registry.bytes_sent(image.layers[0]) <= 1.02 * len(data)


async def test_a_client_that_leaves_cancels_nothing(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 8 * MIB)
        node = await fleet.start()
        impatient = asyncio.ensure_future(fleet.get(node, "blobs", image.layers[0]))
        patient = asyncio.ensure_future(fleet.get(node, "blobs", image.layers[0]))
        await until(lambda: bool(registry.requests("/blobs/")))
        impatient.cancel()
        status, body = await patient
        assert (status, len(body)) == (200, 8 * MIB)


async def test_an_upstream_that_stalls_is_answered_404_in_time(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, MIB)
        node = await fleet.start(mirror=MirrorConfig(host="127.0.0.9", port=0, decide_deadline_seconds=2.0))
        assert (await fleet.get(node, "manifests", "1"))[0] == 200
        registry.fail(Stall(None), path="/blobs/")
        began = asyncio.get_running_loop().time()
        status, body = await fleet.get(node, "blobs", image.layers[0])
        assert status == 404
        assert b"BLOB_UNKNOWN" in body
        assert asyncio.get_running_loop().time() - began < 5.0


async def test_a_full_disk_sends_the_daemon_to_the_upstream_and_loses_nothing(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        small = registry.add_image("app/a", "small", [noise(100_000, 5)])
        big = image_of(registry, 8 * MIB)
        node = await fleet.start(
            node=NodeConfig(name="n", data_dir=tmp_path / "n", max_store_bytes=4 * MIB, shutdown_seconds=1.0)
        )
        await fleet.pull(node, small, "small")
        status, body = await fleet.get(node, "blobs", big.layers[0])
        assert status == 404
        assert b"BLOB_UNKNOWN" in body
        await fleet.pull(node, small, "small")


async def test_a_missing_blob_is_404_and_asked_for_again_later(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, MIB)
        node = await fleet.start()
        registry.fail(Status(404), path="/blobs/")
        assert (await fleet.get(node, "blobs", image.layers[0]))[0] == 404
        registry.heal()
        assert (await fleet.get(node, "blobs", image.layers[0]))[0] == 200


async def test_an_upstream_that_wants_a_pause_gets_it(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 3 * MIB)
        nodes = [await fleet.start() for _ in range(2)]
        registry.fail(Status(429, headers={"Retry-After": "1"}), path="/blobs/", method="GET", times=2)
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert len(registry.requests("/blobs/")) < 100


async def test_a_body_that_waits_for_its_next_chunk_stays_open_while_others_arrive(tmp_path: Path) -> None:
    """Chunks come in any order: the one that is next may come late, and no client is cut off for that."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry, tracked=False) as fleet:
        image = image_of(registry, 2 * MIB)
        node = await fleet.start()
        gate = asyncio.Event()

        async def hold_the_first_chunk(request: web.Request) -> web.StreamResponse | None:
            await gate.wait()
            return None

        registry.fail(Call(hold_the_first_chunk), path="/blobs/", method="GET")
        handle = await node.agent._pull.blob(Repository(registry.name, "app/a"), image.layers[0])
        transfer = handle._transfer
        assert transfer is not None
        pieces = handle.stream(0, 2 * MIB)
        waiting = asyncio.ensure_future(anext(pieces))
        await transfer.ready.wait()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(12):
            while not waiting.done():  # other chunks keep coming
                transfer.rollout.last_progress = loop.time()
                assert transfer.exchange is not None
                transfer.exchange.pulse()
                await asyncio.sleep(0.05)
        assert waiting.result() == b""
        gate.set()
        got = bytearray()
        async for piece in pieces:
            got += piece
        assert bytes(got) == image.blobs[image.layers[0]]
        handle.release()


async def test_a_disk_that_fills_while_peers_send_is_answered_404_at_once(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = image_of(registry, 8 * MIB)
        await fleet.pull(await fleet.start(), image)
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=True)
        try:
            node = await fleet.start(node=NodeConfig(name="n", data_dir=small, shutdown_seconds=1.0))
            began = asyncio.get_running_loop().time()
            status, body = await fleet.get(node, "blobs", image.layers[0])
            assert (status, b"BLOB_UNKNOWN" in body) == (404, True)
            assert asyncio.get_running_loop().time() - began < 5.0
            await fleet.stop(node)
            fleet.nodes.remove(node)
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)


async def test_blobs_that_are_open_for_peers_make_room_for_new_ones(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        node = await fleet.start(
            node=NodeConfig(name="n", data_dir=tmp_path / "n", max_store_bytes=10 * MIB, shutdown_seconds=1.0)
        )
        for number in range(4):  # 4 x 4 MiB through 10 MiB; each is kept open for peers when it is done
            image = registry.add_image("app/a", f"{number}", [noise(4 * MIB, number)])
            await fleet.pull(node, image, f"{number}")
