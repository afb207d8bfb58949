"""The same client against CNCF distribution's own registry."""

import asyncio
import io
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.registry import make_image, make_index, noise

from p2pdist.errors import UpstreamInvalid, UpstreamNotFound
from p2pdist.oci import OCI_INDEX, Digest, Manifest, Repository, parse_manifest
from p2pdist.upstream import Credentials, Registry, Upstreams, UpstreamSettings

BINARY = shutil.which("docker-registry")
CONFIG = """version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: ROOT}}
http: {addr: "127.0.0.1:0"}
"""

pytestmark = [pytest.mark.system]


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """Where a docker-registry of this test's own listens."""
    assert BINARY is not None, "this test needs Debian's docker-registry"
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.replace("ROOT", str(tmp_path / "data")))
    process = subprocess.Popen([BINARY, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        port = await asyncio.wait_for(asyncio.to_thread(_port, process), 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.communicate)


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(rb"listening on 127\.0\.0\.1:(\d+)", line):
            return int(match[1])
    raise AssertionError("the registry ended before it listened")


async def push(url: str, name: str, blobs: list[bytes], manifests: list[tuple[str, bytes, str]]) -> None:
    async with aiohttp.ClientSession() as session:
        for blob in blobs:
            async with session.post(f"{url}/v2/{name}/blobs/uploads/") as answer:
                location = answer.headers["Location"]
            joined = f"{location}{'&' if '?' in location else '?'}digest={Digest.of(blob)}"
            async with session.put(joined, data=io.BytesIO(blob)) as answer:
                assert answer.status == 201, await answer.text()
        for target, raw, media_type in manifests:
            headers = {"Content-Type": media_type}
            async with session.put(f"{url}/v2/{name}/manifests/{target}", data=raw, headers=headers) as answer:
                assert answer.status == 201, await answer.text()


async def test_a_multi_platform_image_is_read_from_a_real_registry(url: str) -> None:
    layers = [noise(3_000_000, 1), noise(10, 2)]
    images = [make_image(layers), make_image(layers[:1], architecture="arm64", docker=False)]
    index = make_index(images)
    blobs = list({digest: data for image in images for digest, data in image.blobs.items()}.values())
    manifests = [(str(image.digest), image.raw, image.media_type) for image in images]
    await push(url, "team/app", blobs, [*manifests, ("v1", index, OCI_INDEX)])
    name = url.removeprefix("http://")
    repository = Repository(name, "team/app")

    async def read(registry: Registry, digest: Digest, **options: Any) -> bytes:
        async with registry.read_blob(repository, digest, **options) as body:
            return b"".join([piece async for piece in body])

    async with Upstreams([UpstreamSettings(name, url)], Credentials()) as upstreams:
        registry = upstreams.registry(name)
        info = await registry.head_manifest(repository, "v1")
        assert (info.digest, info.media_type, info.size) == (Digest.of(index), OCI_INDEX, len(index))
        assert (await registry.get_manifest(repository, "v1")).raw == index
        fetched = await registry.get_manifest(repository, str(images[0].digest))
        manifest = parse_manifest(fetched.raw, fetched.media_type)
        assert isinstance(manifest, Manifest)
        for descriptor, data in zip(manifest.layers, layers, strict=True):
            assert await registry.head_blob(repository, descriptor.digest) == descriptor.size
            assert await read(registry, descriptor.digest, size=descriptor.size) == data
        big = manifest.layers[0]
        assert (
            await read(registry, big.digest, start=1_000_000, end=2_000_000, size=big.size)
            == layers[0][1_000_000:2_000_000]
        )
        assert await read(registry, big.digest, start=2_999_999) == layers[0][-1:]
        assert b'"v1"' in (await registry.tags_list(repository)).body
        with pytest.raises(UpstreamNotFound, match="MANIFEST_UNKNOWN"):
            await registry.get_manifest(repository, "v2")
        with pytest.raises(UpstreamNotFound, match="BLOB_UNKNOWN"):
            await read(registry, Digest.of(b"nothing"))
        with pytest.raises(UpstreamNotFound):
            await registry.referrers(repository, images[0].digest, None)
        with pytest.raises(UpstreamInvalid):
            await read(registry, big.digest, start=3_000_000, end=3_000_010, size=3_000_010)
