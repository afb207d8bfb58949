"""The demo's upstream: a registry that serves one image and counts every byte of every body it sends.

Its own process (`python -m p2pdist.cli.demo.registry DIRECTORY`), so that nobody's work but its own is between it and
its clients. The first line on standard output is its port; `GET /sent` is the count.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import uvloop
from aiohttp import web

from p2pdist.oci import OCI_MANIFEST, Digest

MANIFEST_FILE = "manifest.json"
_PIECE = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")


class DemoRegistry:
    """What lies in `directory`: the manifest in `manifest.json`, blobs under their hex digests. `sent`: by digest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._manifest = (directory / MANIFEST_FILE).read_bytes()
        self._digest = Digest.of(self._manifest)
        self.sent: Counter[str] = Counter()

    def app(self) -> web.Application:
        """The application; GET and HEAD as the OCI distribution-spec has them for pulling."""
        app = web.Application()
        app.router.add_get("/v2/", self._ping)
        app.router.add_get("/v2/{name:.+}/manifests/{target}", self._answer_manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._answer_blob)
        app.router.add_get("/sent", self._answer_sent)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _answer_sent(self, _: web.Request) -> web.Response:
        return web.json_response(dict(self.sent))

    async def _answer_manifest(self, request: web.Request) -> web.Response:
        if request.match_info["target"] not in ("latest", str(self._digest)):
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        if request.method == "GET":
            self.sent[str(self._digest)] += len(self._manifest)
        headers = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(self._digest)}
        return web.Response(body=self._manifest, headers=headers)

    async def _answer_blob(self, request: web.Request) -> web.StreamResponse:
        text = request.match_info["digest"]
        try:
            fd = os.open(self._directory / Digest.parse(text).hex, os.O_RDONLY)
        except (OSError, ValueError):
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        try:
            return await self._send(request, text, fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    async def _send(self, request: web.Request, digest: str, fd: int, size: int) -> web.StreamResponse:
        start, end, status = 0, size, 200
        headers = {"Accept-Ranges": "bytes", "Docker-Content-Digest": digest}
        if wanted := _RANGE.fullmatch(request.headers.get("Range", "")):
            start, end, status = int(wanted[1]), min(int(wanted[2] or size) + 1, size), 206
            if start >= end:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = end - start
        await response.prepare(request)
        while start < end and request.method == "GET":
            piece = os.pread(fd, min(_PIECE, end - start), start)
            self.sent[digest] += len(piece)  # before it leaves: a piece cut half way counts whole
            start += len(piece)
            await response.write(piece)
        await response.write_eof()
        return response


async def serve(directory: Path) -> None:
    """Until SIGTERM."""
    runner = web.AppRunner(DemoRegistry(directory).app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
