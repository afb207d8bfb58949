"""The recorded request sequences of real clients (design page "clients", section 1), header by header."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from conftest import Running, request
from mirror_fakes import connected, read_answer

from p2pdist.oci import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest

SIX_ACCEPTS = [
    DOCKER_MANIFEST,
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
]
CONTAINERD = {
    "User-Agent": "containerd/v2.4.0",
    "Accept-Encoding": "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5",
}


class FakeImage:
    """An index with one platform's manifest, a config and three layers, in the source of a mirror."""

    def __init__(self, mirror: Running, repository: str) -> None:
        self.config = b'{"architecture":"amd64","os":"linux"}'
        self.layers = [bytes([number]) * 300_000 for number in range(3)]
        for blob in (self.config, *self.layers):
            mirror.flight(blob).prove()
        manifest = json.dumps({"layers": [str(Digest.of(layer)) for layer in self.layers]}).encode()
        index = json.dumps({"manifests": [str(Digest.of(manifest))]}).encode()
        self.manifest = mirror.source.add_manifest(repository, "amd64", manifest, OCI_MANIFEST)
        self.index = mirror.source.add_manifest(repository, "1.0", index, OCI_INDEX)


async def test_docker_with_a_graph_driver(mirror: Running) -> None:
    image = FakeImage(mirror, "docker.io/library/a")
    same = ["User-Agent: docker/28.5.2 go/go1.26.8 os/linux arch/amd64", "Connection: close"]
    accepts = [f"Accept: {accepted}" for accepted in SIX_ACCEPTS]
    assert (await mirror.ask("/v2/", *same)).status == 200
    head = await mirror.ask("/v2/library/a/manifests/1.0", *accepts, *same, method="HEAD")
    assert head.headers["docker-content-digest"] == str(image.index.digest)
    assert head.headers["content-type"] == OCI_INDEX
    assert head.headers["content-length"] == str(len(image.index.raw))  # without it the mirror stays unused
    for one in (image.index, image.manifest):
        answer = await mirror.ask(f"/v2/library/a/manifests/{one.digest}", *accepts, *same)
        assert (answer.body, answer.headers["connection"]) == (one.raw, "close")
    blobs = [image.config, *image.layers]
    answers = await asyncio.gather(
        *(mirror.ask(f"/v2/library/a/blobs/{Digest.of(blob)}", "Accept-Encoding: identity", *same) for blob in blobs)
    )
    assert [answer.body for answer in answers] == blobs
    cut_off = await mirror.ask(f"/v2/library/a/blobs/{Digest.of(blobs[1])}", "Range: bytes=100000-", *same)
    assert (cut_off.status, cut_off.body) == (206, blobs[1][100_000:])


@pytest.mark.parametrize("ns", ["ghcr.io", "127.0.0.1:5000"])
async def test_containerd_with_concurrent_ranges(mirror: Running, ns: str) -> None:
    image = FakeImage(mirror, f"{ns}/org/app")
    base = f"http://127.0.0.1:{mirror.port}/v2/org/app"
    async with aiohttp.ClientSession(headers=CONTAINERD, auto_decompress=False) as session:
        accept = {"Accept": f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"}
        async with session.head(f"{base}/manifests/1.0", params={"ns": ns}, headers=accept) as head:
            assert head.status == 200
            assert head.headers["Docker-Content-Digest"] == str(image.index.digest)
            resolved = head.headers["Content-Type"]
        whole = {"Accept": f"{resolved}, */*", "Range": "bytes=0-"}
        for one in (image.index, image.manifest):
            async with session.get(f"{base}/manifests/{one.digest}", params={"ns": ns}, headers=whole) as answer:
                assert answer.status in (200, 206)
                assert "Content-Encoding" not in answer.headers
                assert await answer.read() == one.raw

        async def fetch(blob: bytes) -> None:
            got = b""
            for start in range(0, len(blob), 100_000):
                ranged = {"Accept": "*/*", "Range": f"bytes={start}-"}
                url = f"{base}/blobs/{Digest.of(blob)}"
                async with session.get(url, params={"ns": ns}, headers=ranged) as answer:
                    assert answer.status == 206
                    assert answer.headers["Content-Range"] == f"bytes {start}-{len(blob) - 1}/{len(blob)}"
                    assert "Content-Encoding" not in answer.headers
                    got += (await answer.content.readexactly(min(100_000, len(blob) - start)))[:100_000]
            assert got == blob

        await asyncio.gather(*(fetch(blob) for blob in (image.config, *image.layers)))
        asked = {entry[1] for entry in mirror.source.asked}
        assert asked == {f"{ns}/org/app"}
        # Docker 29 looks for signatures: not found here, it asks the registry itself.
        async with session.get(f"{base}/referrers/{image.manifest.digest}", params={"ns": ns}) as answer:
            assert answer.status == 404


async def test_podman_buildah_skopeo(mirror: Running) -> None:
    image = FakeImage(mirror, "host:5000/org/app")
    same = ["User-Agent: containers/5.23.1", "Docker-Distribution-Api-Version: registry/2.0"]
    accepts = [f"Accept: {accepted}" for accepted in SIX_ACCEPTS]
    ping = await mirror.ask("/v2/", *same)
    assert (ping.status, ping.headers["docker-distribution-api-version"]) == (200, "registry/2.0")
    assert (await mirror.ask("/v2/host__5000/org/app/manifests/1.0", *accepts, *same)).body == image.index.raw
    one = image.manifest
    assert (await mirror.ask(f"/v2/host__5000/org/app/manifests/{one.digest}", *accepts, *same)).body == one.raw
    async with connected(mirror.port) as (reader, writer):
        for blob in (*image.layers, image.config):
            writer.write(request(f"/v2/host__5000/org/app/blobs/{Digest.of(blob)}", *same))
            answer = await read_answer(reader)
            assert (answer.status, answer.body) == (200, blob)
            assert answer.headers["content-length"] == str(len(blob))


async def test_cosign_and_notation_find_nothing_invented(mirror: Running) -> None:
    image = FakeImage(mirror, "ghcr.io/org/app")
    digest = image.index.digest
    for target in (
        f"/v2/ghcr.io/org/app/referrers/{digest}",
        f"/v2/ghcr.io/org/app/referrers/{digest}?artifactType=application%2Fvnd.cncf.notary.signature",
        f"/v2/ghcr.io/org/app/manifests/sha256-{digest.hex}",
        f"/v2/ghcr.io/org/app/manifests/sha256-{digest.hex}.sig",
    ):
        assert (await mirror.ask(target, "Accept: */*")).status == 404
