"""A real registry on loopback, in the test's own process: images made in memory, a request log, scripted faults.

    async with FakeRegistry() as registry:
        image = registry.add_image("library/a", "latest", [noise(1 << 20)])
        registry.fail(Cut(after=1000), path=str(image.layers[0]), times=1)
        ... registry.url, registry.name ...
        assert registry.bytes_sent(image.layers[0]) == 1 << 20

With `storage=True` blobs are redirected (307, with a signed query) to a second server on another port, as object
storage does; its requests are in `registry.storage_log`. Authentication: `auth=BasicAuth(...)` or `BearerAuth(...)`.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from support.answers import Logged, error, send
from support.auth import BasicAuth, BearerAuth, Door
from support.faults import (
    Call,
    Corrupt,
    Cut,
    Endless,
    Fault,
    Headers,
    Hold,
    IgnoreRange,
    NoLength,
    ShiftRange,
    Stall,
    Status,
    WrongLength,
)  # fmt: skip
from support.images import Image, make_image, make_index, noise

from p2pdist.oci import DOCKER_LIST, OCI_INDEX, Digest

__all__ = [
    "BasicAuth", "BearerAuth", "Call", "Corrupt", "Cut", "Endless", "FakeRegistry", "Headers", "Hold", "IgnoreRange",
    "Image", "Logged", "NoLength", "ShiftRange", "Stall", "Status", "WrongLength", "make_image", "make_index", "noise",
]  # fmt: skip


@dataclass
class _Rule:
    fault: Fault
    path: re.Pattern[str]
    method: str | None
    left: int | None


class FakeRegistry:
    """See the module. Start it as an asynchronous context manager."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        auth: BasicAuth | BearerAuth | None = None,
        storage: bool = False,
        referrers: bool = True,
        page: int | None = None,
        tls: ssl.SSLContext | None = None,
        linked: bool = False,
    ) -> None:
        self._tls = tls
        self.linked = linked  # a blob is in the repositories whose manifests name it, not in all
        self.host, self.port, self.referrers, self.page = host, port, referrers, page
        self._door = Door(auth)
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[str, dict[str, tuple[bytes, str]]] = {}  # repository -> tag or digest -> (raw, type)
        self.log: list[Logged] = []
        self.storage_log: list[Logged] = []
        self.storage_port = 0
        self._storage = storage
        self._rules: list[_Rule] = []
        self._runners: list[web.AppRunner] = []

    # --- content ---

    def add_blob(self, data: bytes, algorithm: str = "sha256") -> Digest:
        digest = Digest.of(data, algorithm)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, repository: str, raw: bytes, media_type: str, tag: str | None = None) -> Digest:
        digest = Digest.of(raw)
        held = self.manifests.setdefault(repository, {})
        held[str(digest)] = (raw, media_type)
        if tag is not None:
            held[tag] = (raw, media_type)
        return digest

    def add_image(self, repository: str, tag: str | None, layers: Sequence[bytes], **options: Any) -> Image:
        """`options` as `make_image`."""
        image = make_image(layers, **options)
        self.blobs.update(image.blobs)
        self.add_manifest(repository, image.raw, image.media_type, tag)
        return image

    def add_index(self, repository: str, tag: str | None, images: Sequence[Image], *, docker: bool = False) -> Digest:
        for image in images:
            self.blobs.update(image.blobs)
            self.add_manifest(repository, image.raw, image.media_type)
        raw = make_index(images, docker=docker)
        return self.add_manifest(repository, raw, DOCKER_LIST if docker else OCI_INDEX, tag)

    # --- faults and what was asked ---

    def fail(self, fault: Fault, *, path: str = "", method: str | None = None, times: int | None = None) -> Fault:
        """`fault` for requests whose path (storage: `/storage/<digest>`) matches the regular expression `path`.

        Of several rules that match, the first added wins; `times`: how often (None: always).
        """
        self._rules.append(_Rule(fault, re.compile(path), method, times))
        return fault

    def heal(self) -> None:
        """Forget all faults."""
        self._rules.clear()

    def requests(self, path: str = "", method: str | None = None) -> list[Logged]:
        """Logged requests (storage included) whose path matches the regular expression."""
        logged = self.log + self.storage_log
        return [one for one in logged if re.search(path, one.path) and method in (None, one.method)]

    def bytes_sent(self, digest: Digest) -> int:
        """Body bytes sent of this blob, over all answers."""
        return sum(one.sent for one in self.requests(re.escape(str(digest))) if one.status in (200, 206))

    @property
    def name(self) -> str:
        """`host:port`: the registry's name in a reference."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.name}"

    # --- life ---

    async def __aenter__(self) -> FakeRegistry:
        self.port = await self._serve(self.log, self._answer, self.port)
        if self._storage:
            self.storage_port = await self._serve(self.storage_log, self._answer_storage, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for rule in self._rules:
            if isinstance(rule.fault, Stall | Hold):
                rule.fault.release.set()
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, log: list[Logged], answer: Callable[..., Any], port: int) -> int:
        async def handle(request: web.Request) -> web.StreamResponse:
            one = Logged(request.method, request.path, request.query_string, request.headers.copy())
            log.append(one)
            one.body = await request.read()
            response = await self._faulty(request, one, answer)
            one.status = response.status
            if isinstance(response, web.Response) and isinstance(response.body, bytes) and request.method != "HEAD":
                one.sent = len(response.body)
            return response

        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self.host, port, ssl_context=self._tls)
        await site.start()
        return int(site._server.sockets[0].getsockname()[1])

    # --- answers ---

    async def _faulty(self, request: web.Request, one: Logged, answer: Callable[..., Any]) -> web.StreamResponse:
        fault = self._fault_for(request)
        if isinstance(fault, Hold):
            fault.arrived.release()
            await fault.release.wait()
        elif isinstance(fault, Call):
            response = await fault.handler(request)
            if response is not None:
                return response
        elif isinstance(fault, Status):
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        elif isinstance(fault, Stall) and fault.after is None:
            await fault.release.wait()
        return await answer(request, one, fault)

    def _fault_for(self, request: web.Request) -> Fault | None:
        for rule in self._rules:
            if rule.left == 0 or rule.method not in (None, request.method) or not rule.path.search(request.path):
                continue
            if rule.left is not None:
                rule.left -= 1
            return rule.fault
        return None

    async def _answer(self, request: web.Request, one: Logged, fault: Fault | None) -> web.StreamResponse:
        if request.path == "/token":
            return self._door.token(request, one)
        match = re.fullmatch(r"/v2/(?:(.+)/(manifests|blobs|referrers|tags)/([^/]+))?", request.path)
        if match is None:
            return error(404, "NOT_FOUND")
        if request.method not in ("GET", "HEAD"):
            return error(405, "UNSUPPORTED")
        repository, what, target = match[1] or "", match[2], match[3]
        refused = self._door.refuse(request, repository, f"{self.url}/token")
        if refused is not None:
            return refused
        if what is None:
            return web.json_response({})
        if what == "manifests":
            held = self.manifests.get(repository, {}).get(target)
            if held is None:
                return error(404, "MANIFEST_UNKNOWN")
            headers = {"Content-Type": held[1], "Docker-Content-Digest": str(Digest.of(held[0]))}
            return await send(request, one, held[0], headers, fault)
        if what == "blobs":
            blob = self.blobs.get(Digest.parse(target))
            if self.linked and not any(
                target.encode() in raw for raw, _ in self.manifests.get(repository, {}).values()
            ):
                blob = None
            if blob is None:
                return error(404, "BLOB_UNKNOWN")
            if self._storage:
                scheme = "https" if self._tls else "http"
                url = f"{scheme}://{self.host}:{self.storage_port}/storage/{target}?X-Signature=secret-{secrets.token_hex(4)}"
                return web.Response(status=307, headers={"Location": url})
            headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": target}
            return await send(request, one, blob, headers, fault)
        if what == "referrers":
            return self._referrers(request, repository, target)
        return self._tags(request, repository)

    async def _answer_storage(self, request: web.Request, one: Logged, fault: Fault | None) -> web.StreamResponse:
        if "Authorization" in request.headers:  # as object storage does when a request is signed twice
            return web.Response(status=400, text="only one auth mechanism allowed")
        blob = self.blobs.get(Digest.parse(request.path.rpartition("/")[2]))
        if blob is None:
            return web.Response(status=404)
        return await send(request, one, blob, {"Content-Type": "application/octet-stream"}, fault)

    def _referrers(self, request: web.Request, repository: str, digest: str) -> web.Response:
        if not self.referrers:
            return error(404, "NOT_FOUND")
        found = []
        for target, (raw, media_type) in self.manifests.get(repository, {}).items():
            body = json.loads(raw)
            if ":" in target and (body.get("subject") or {}).get("digest") == digest:
                one = {"mediaType": media_type, "digest": target, "size": len(raw)}
                found.append(one | {k: body[k] for k in ("artifactType", "annotations") if k in body})
        wanted = request.query.get("artifactType")
        headers = {}
        if wanted is not None:
            found = [one for one in found if one.get("artifactType") == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        first = int(request.query.get("after", "0"))
        if self.page is not None and first + self.page < len(found):
            headers["Link"] = f'<{request.path}?after={first + self.page}>; rel="next"'
        page = found[first : first + self.page] if self.page is not None else found
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return web.Response(body=json.dumps(index).encode(), headers=headers, content_type=OCI_INDEX)

    def _tags(self, request: web.Request, repository: str) -> web.Response:
        if repository not in self.manifests:
            return error(404, "NAME_UNKNOWN")
        tags = sorted(tag for tag in self.manifests[repository] if ":" not in tag)
        tags = [tag for tag in tags if tag > request.query.get("last", "")]
        n = int(request.query.get("n", str(self.page or len(tags) or 1)))
        headers = {}
        if n < len(tags):
            headers["Link"] = f'</v2/{repository}/tags/list?n={n}&last={tags[n - 1]}>; rel="next"'
        return web.json_response({"name": repository, "tags": tags[:n]}, headers=headers)

    def revoke_tokens(self) -> None:
        """Every token given so far stops working."""
        self._door.revoke_tokens()
