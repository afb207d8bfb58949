"""The demo's puller believes nobody: whatever a mirror does wrong is found, and named."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from p2pdist.cli.demo.image import make_image
from p2pdist.cli.demo.pull import Pull
from p2pdist.cli.demo.registry import MANIFEST_FILE, DemoRegistry


@pytest.fixture
def image(tmp_path):
    made = make_image(tmp_path, 256 * 1024, 5)
    (tmp_path / MANIFEST_FILE).write_bytes(made.manifest)
    return made


async def pulled(app: web.Application) -> Pull:
    async with TestServer(app) as server:
        pull = Pull(str(server.make_url("")).rstrip("/"), "demo/rollout", "latest", "registry.demo")
        start = asyncio.Event()
        start.set()
        await pull.run(start)
    return pull


def mirror(image, answer_blob=None, manifest: bytes | None = None) -> web.Application:
    """A registry with one thing wrong with it."""
    if manifest is not None:
        (image.directory / MANIFEST_FILE).write_bytes(manifest)
    app = DemoRegistry(image.directory).app()
    if answer_blob is None:
        return app

    @web.middleware
    async def instead(request, handler):
        if request.path.endswith(str(image.layers[3].digest)):
            return await answer_blob(request)
        return await handler(request)

    app.middlewares.append(instead)
    return app


async def test_every_digest_of_an_honest_mirrors_image_is_proved(image):
    pull = await pulled(mirror(image))
    assert (pull.error, pull.proved, pull.received) == ("", set(image.digests), image.size)
    assert pull.seconds > 0


async def test_it_asks_as_containerd_does_three_layers_at_a_time_naming_the_registry(image):
    seen, now, most = [], 0, 0
    layers = {str(layer.digest) for layer in image.layers}
    app = mirror(image)

    @web.middleware
    async def watch(request, handler):
        nonlocal now, most
        seen.append((request.path.split("/")[-2], request.query.get("ns")))
        now += 1
        most = max(most, now)
        try:
            if request.path.split("/")[-1] in layers:
                for _ in range(50):  # real sockets: give the next request every chance to come too soon
                    await asyncio.sleep(0.001)
                    most = max(most, now)
            return await handler(request)
        finally:
            now -= 1

    app.middlewares.append(watch)
    assert not (await pulled(app)).error
    assert seen[1:3] == [("manifests", "registry.demo"), ("blobs", "registry.demo")]
    assert most == 3


async def test_one_wrong_bit_is_found(image):
    async def answer(_):
        data = bytearray((image.directory / image.layers[3].digest.hex).read_bytes())
        data[-1] ^= 1
        return web.Response(body=bytes(data))

    pull = await pulled(mirror(image, answer))
    assert str(image.layers[3].digest) in pull.error
    assert image.layers[3].digest not in pull.proved
    assert pull.seconds is None


@pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
async def test_a_blob_of_another_length_is_found(image, change):
    async def answer(_):
        return web.Response(body=bytes(image.layers[3].size + change))

    pull = await pulled(mirror(image, answer))
    assert pull.error and image.layers[3].digest not in pull.proved


async def test_a_body_that_is_cut_is_found(image):
    async def answer(request):
        response = web.StreamResponse()
        response.content_length = image.layers[3].size
        await response.prepare(request)
        await response.write(b"x")
        request.transport.close()
        return response

    assert (await pulled(mirror(image, answer))).error


@pytest.mark.parametrize("status", [404, 500, 401])
async def test_a_refusal_is_a_failure_since_a_daemon_would_have_gone_round_the_mirror(image, status):
    async def answer(_):
        return web.Response(status=status)

    assert f"answers {status}" in (await pulled(mirror(image, answer))).error


@pytest.mark.parametrize(
    "manifest",
    [b"<html>", b"[]", b'{"config": {}, "layers": []}', json.dumps({"config": {"digest": "x", "size": 1}}).encode()],
)
async def test_what_is_no_manifest_is_named_so(image, manifest):
    assert "no image manifest" in (await pulled(mirror(image, manifest=manifest))).error


async def test_a_mirror_that_is_not_there_is_an_error_not_a_crash():
    pull = Pull("http://127.0.0.1:1", "demo/rollout", "latest", "registry.demo")
    await pull.run(asyncio.Event())
    assert "127.0.0.1" in pull.error


async def test_nobody_pulls_before_the_start(image):
    async with TestServer(mirror(image)) as server:
        pull = Pull(str(server.make_url("")).rstrip("/"), "demo/rollout", "latest", "registry.demo")
        start = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(pull.run(start))
            for _ in range(50):
                await asyncio.sleep(0.001)  # real sockets: give it every chance
            assert pull.received == 0
            start.set()
            await task
    assert pull.received == image.size
