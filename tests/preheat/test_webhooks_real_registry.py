"""CNCF distribution's own registry reports a push to a port of the tracker, and the nodes have the image."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from preheat_kit import Operator, until_async
from support.fleet import Fleet
from support.images import Image, make_image, noise

from p2pdist.cli.demo.cluster import free_port
from p2pdist.oci import Digest
from tracker.preheats import PreheatRules
from tracker.webhooks import HookRules

BINARY = shutil.which("docker-registry")
TOKEN = "a-token-of-32-random-characters!"
CONFIG = """version: 0.1
log: {level: info, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: ROOT}}
http: {addr: "127.0.0.1:PORT"}
notifications:
  endpoints:
    - name: p2pdist
      url: http://127.0.0.1:HOOKS/v1/hooks/distribution
      headers:
        Authorization: [Bearer TOKEN]
      timeout: 5s
      threshold: 5
      backoff: 1s
"""

pytestmark = [pytest.mark.system]


class Upstream:
    """What a fleet needs of its registry."""

    def __init__(self, port: int) -> None:
        self.name, self.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"


@asynccontextmanager
async def registry(directory: Path, hooks: int) -> AsyncIterator[Upstream]:
    assert BINARY is not None, "this test needs Debian's docker-registry"
    upstream = Upstream(free_port("127.0.0.1", 0))
    text = CONFIG.replace("ROOT", str(directory / "data")).replace("TOKEN", TOKEN).replace("HOOKS", str(hooks))
    (directory / "config.yml").write_text(text.replace("PORT", upstream.url.rpartition(":")[2]))
    process = subprocess.Popen([BINARY, "serve", str(directory / "config.yml")], stderr=subprocess.PIPE)
    try:
        await asyncio.wait_for(asyncio.to_thread(_listens, process), 60)
        yield upstream
    finally:
        process.terminate()
        await asyncio.to_thread(process.communicate)


def _listens(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(rb"listening on 127\.0\.0\.1", line):
            return
    raise AssertionError("the registry ended before it listened")


async def push(client: aiohttp.ClientSession, url: str, image: Image, tag: str) -> None:
    for digest, blob in image.blobs.items():
        async with client.post(f"{url}/v2/acme/app/blobs/uploads/") as answer:
            location = answer.headers["Location"]
        where = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        async with client.put(where, data=io.BytesIO(blob)) as answer:
            assert answer.status == 201, await answer.text()
    headers = {"Content-Type": image.media_type}
    async with client.put(f"{url}/v2/acme/app/manifests/{tag}", data=image.raw, headers=headers) as answer:
        assert answer.status == 201, await answer.text()


async def test_an_image_that_is_pushed_is_on_the_nodes_before_anybody_asks(tmp_path: Path) -> None:
    port = free_port("127.0.0.1", 0)
    async with registry(tmp_path, port) as upstream:
        hooks = HookRules(token=TOKEN, images=f"{upstream.name}/acme/*:v*", port=port)
        settings = {"hooks": hooks, "preheat": PreheatRules(settle=0.0)}
        async with Fleet(tmp_path, upstream, settings=settings) as fleet:  # type: ignore[arg-type]
            nodes = [await fleet.start() for _ in range(2)]
            image = make_image([noise(300_000)])
            await push(fleet.client, upstream.url, image, "dev")  # no rule for it
            await push(fleet.client, upstream.url, image, "v1")
            operator = Operator(fleet)

            async def ordered() -> bool:
                return bool((await operator.ask("GET", "/v1/jobs"))["jobs"])

            await until_async(ordered)
            (job,) = (await operator.ask("GET", "/v1/jobs"))["jobs"]
            assert job["reference"] == f"{upstream.name}/acme/app:v1@{Digest.of(image.raw)}"
            job = await operator.finished(job["id"])
            assert (job["state"], job["counts"]) == ("done", {"done": 2}), job
            for node in nodes:
                assert all(node.agent._store.find(digest) is not None for digest in (image.digest, *image.blobs))
