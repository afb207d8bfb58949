"""The demo's registry answers as a registry does, and its count of what it sent can be relied on."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import TestClient, TestServer

from p2pdist.cli.demo.image import make_image
from p2pdist.cli.demo.registry import MANIFEST_FILE, DemoRegistry
from p2pdist.oci import OCI_MANIFEST


@pytest.fixture
def image(tmp_path):
    made = make_image(tmp_path, 1024 * 1024, 2)
    (tmp_path / MANIFEST_FILE).write_bytes(made.manifest)
    return made


@pytest.fixture
async def registry(image):
    registry = DemoRegistry(image.directory)
    async with TestClient(TestServer(registry.app())) as client:
        registry.client = client
        yield registry


def blob(layer) -> str:
    return f"/v2/demo/rollout/blobs/{layer.digest}"


@pytest.mark.parametrize("by", ["latest", "digest"])
async def test_the_manifest_comes_by_tag_and_by_digest_with_its_type(registry, image, by):
    target = by if by == "latest" else image.manifest_digest
    async with registry.client.get(f"/v2/demo/rollout/manifests/{target}") as answer:
        assert await answer.read() == image.manifest
        assert answer.headers["Content-Type"] == OCI_MANIFEST
        assert answer.headers["Docker-Content-Digest"] == str(image.manifest_digest)


async def test_every_byte_of_every_body_is_counted(registry, image):
    layer = image.layers[0]
    for _ in range(2):
        async with registry.client.get(blob(layer)) as answer:
            assert await answer.read() == (image.directory / layer.digest.hex).read_bytes()
    async with registry.client.get("/v2/demo/rollout/manifests/latest"):
        pass
    async with registry.client.get("/sent") as answer:
        assert await answer.json() == {
            str(layer.digest): 2 * layer.size,
            str(image.manifest_digest): len(image.manifest),
        }


async def test_a_head_sends_nothing(registry, image):
    for path in (blob(image.layers[0]), "/v2/demo/rollout/manifests/latest"):
        async with registry.client.head(path) as answer:
            assert answer.status == 200 and int(answer.headers["Content-Length"]) > 0
    assert not +registry.sent


@pytest.mark.parametrize(
    ("wanted", "start", "end"), [("bytes=10-19", 10, 20), ("bytes=1000-", 1000, None), ("bytes=5-99999999", 5, None)]
)
async def test_a_range_is_answered_and_counted_alone(registry, image, wanted, start, end):
    layer = image.layers[0]
    data = (image.directory / layer.digest.hex).read_bytes()
    async with registry.client.get(blob(layer), headers={"Range": wanted}) as answer:
        body = await answer.read()
        assert (answer.status, body) == (206, data[start:end])
        assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{layer.size}"
    assert registry.sent[str(layer.digest)] == len(body)


async def test_a_range_behind_the_end_is_416(registry, image):
    async with registry.client.get(blob(image.layers[0]), headers={"Range": "bytes=99999999-"}) as answer:
        assert answer.status == 416


@pytest.mark.parametrize(
    "path",
    [
        "/v2/demo/rollout/manifests/other",
        f"/v2/demo/rollout/blobs/sha256:{'0' * 64}",
        "/v2/demo/rollout/blobs/manifest.json",
        "/v2/demo/rollout/blobs/..%2Fsecret",
    ],
)
async def test_what_it_does_not_have_is_404(registry, path):
    async with registry.client.get(path) as answer:
        assert answer.status == 404
