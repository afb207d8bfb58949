"""Manifests, referrers and tags over real sockets: headers, errors, deadlines. Design page "clients", section 5."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

import pytest
from conftest import HUB_ALPINE, Running, request
from mirror_fakes import FakeManifest, FakeRaw, connected, read_answer
from structlog.testing import capture_logs

from p2pdist.errors import (
    DiskFull,
    InvalidManifest,
    PolicyError,
    StorageError,
    TrackerError,
    UpstreamDenied,
    UpstreamInvalid,
    UpstreamNotAllowed,
    UpstreamNotFound,
    UpstreamThrottled,
    UpstreamUnreachable,
)
from p2pdist.oci import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest

RAW = b'{ "schemaVersion":2 ,\n\t"\\u0061": [] }\n'  # not how any library would write it
DOCKER_ACCEPTS = [
    DOCKER_MANIFEST,
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
]
TROUBLES = [
    UpstreamNotFound("gone", status=404),
    UpstreamDenied("no", status=401),
    UpstreamNotAllowed("not in the list"),
    UpstreamThrottled("slow down", status=429, retry_after=1),
    UpstreamUnreachable("no route"),
    UpstreamInvalid("wrong digest"),
    StorageError("broken"),
    DiskFull("no room"),
    TrackerError("no tracker"),
    InvalidManifest("not JSON"),
    TimeoutError("too late"),
    RuntimeError("a bug"),
    KeyError("another bug"),
]


def code(body: bytes) -> str:
    (error,) = json.loads(body)["errors"]
    assert error["message"]
    return error["code"]


async def test_ping_is_answered_always(mirror: Running) -> None:
    for method in ("GET", "HEAD"):
        answer = await mirror.ask("/v2/", method=method)
        assert answer.status == 200
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        assert answer.headers["content-type"] == "application/json"
        assert answer.body == (b"{}" if method == "GET" else b"")


@pytest.mark.parametrize(
    "media_type", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, "application/x-new+json"]
)
async def test_manifest_is_passed_on_byte_for_byte_with_its_own_type(mirror: Running, media_type: str) -> None:
    manifest = mirror.source.add_manifest(HUB_ALPINE, "3.20", RAW, media_type)
    for target in ("3.20", str(manifest.digest)):
        got = await mirror.ask(f"/v2/library/alpine/manifests/{target}", "Accept: */*", "Accept-Encoding: gzip, zstd")
        head = await mirror.ask(f"/v2/library/alpine/manifests/{target}", "Accept: */*", method="HEAD")
        assert (got.status, got.body) == (200, RAW)
        assert (head.status, head.body) == (200, b"")
        for answer in (got, head):
            assert answer.headers["content-type"] == media_type
            assert answer.headers["docker-content-digest"] == str(Digest.of(RAW))
            assert answer.headers["content-length"] == str(len(RAW))
            assert "content-encoding" not in answer.headers
            assert "transfer-encoding" not in answer.headers


async def test_accept_lines_in_any_order_are_one_list(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", RAW, OCI_INDEX)
    order = random.Random(1)
    for _ in range(10):
        lines = [f"Accept: {accepted}" for accepted in order.sample(DOCKER_ACCEPTS, len(DOCKER_ACCEPTS))]
        assert (await mirror.ask("/v2/library/alpine/manifests/latest", *lines)).status == 200


async def test_manifest_that_the_client_cannot_read_is_left_to_the_upstream(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", RAW, OCI_INDEX)
    answer = await mirror.ask("/v2/library/alpine/manifests/latest", f"Accept: {DOCKER_MANIFEST}")
    assert (answer.status, code(answer.body)) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda error: type(error).__name__)
async def test_whatever_goes_wrong_with_a_manifest_sends_the_daemon_to_the_upstream(
    mirror: Running, trouble: Exception
) -> None:
    mirror.source.manifests[HUB_ALPINE, "latest"] = trouble
    mirror.source.raw = trouble
    with capture_logs():
        for route in ("manifests/latest", f"referrers/{Digest.of(RAW)}", "tags/list"):
            for method in ("GET", "HEAD"):
                answer = await mirror.ask(f"/v2/library/alpine/{route}", method=method)
                assert answer.status == 404
                assert "www-authenticate" not in answer.headers
                assert "retry-after" not in answer.headers
                if method == "GET":
                    assert code(answer.body) == ("NAME_UNKNOWN" if route == "tags/list" else "MANIFEST_UNKNOWN")


async def test_policy_says_its_reason_to_the_user(mirror: Running) -> None:
    mirror.source.manifests[HUB_ALPINE, "latest"] = PolicyError("docker.io/library: needs a signature by release-key")
    answer = await mirror.ask("/v2/library/alpine/manifests/latest")
    assert (answer.status, code(answer.body)) == (403, "DENIED")
    assert "release-key" in json.loads(answer.body)["errors"][0]["message"]


async def test_manifest_with_wrong_bytes_never_leaves(mirror: Running) -> None:
    asked, other = Digest.of(RAW), Digest.of(b"{}")
    mirror.source.manifests[HUB_ALPINE, "tampered"] = FakeManifest(b"{}", OCI_MANIFEST, asked)
    mirror.source.manifests[HUB_ALPINE, str(asked)] = FakeManifest(b"{}", OCI_MANIFEST, other)
    for target in ("tampered", str(asked)):
        for method in ("GET", "HEAD"):
            answer = await mirror.ask(f"/v2/library/alpine/manifests/{target}", method=method)
            assert answer.status == 404
            assert "docker-content-digest" not in answer.headers


async def test_manifest_that_hangs_is_answered_before_any_client_gives_up(
    start: Callable[..., Awaitable[Running]],
) -> None:
    mirror = await start(decide_deadline=0.05)
    mirror.source.manifests[HUB_ALPINE, "latest"] = asyncio.Event()
    answer = await mirror.ask("/v2/library/alpine/manifests/latest")
    assert (answer.status, code(answer.body)) == (404, "MANIFEST_UNKNOWN")


async def test_client_that_does_not_read_its_manifest_is_dropped(start: Callable[..., Awaitable[Running]]) -> None:
    mirror = await start(client_stall=0.1)
    mirror.source.add_manifest(HUB_ALPINE, "latest", b" " * (32 << 20))
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port, limit=1024)
    writer.transport.pause_reading()
    writer.write(request("/v2/library/alpine/manifests/latest"))
    kind, status, sent = await mirror.told()
    assert (kind, status) == ("manifest", 200)
    assert sent < 32 << 20
    writer.transport.abort()
    assert reader is not None


async def test_known_manifest_needs_no_body_again(mirror: Running) -> None:
    manifest = mirror.source.add_manifest(HUB_ALPINE, "latest", RAW)
    answer = await mirror.ask("/v2/library/alpine/manifests/latest", f'If-None-Match: "{manifest.digest}"')
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == f'"{manifest.digest}"'


async def test_authorization_reaches_the_source_and_no_log(mirror: Running) -> None:
    secret = "Bearer s3cret-token"
    manifest = mirror.source.add_manifest(HUB_ALPINE, "latest", RAW)
    digest = Digest.of(b"blob")
    with capture_logs() as logs:
        for target in ("manifests/latest", "manifests/none", f"blobs/{digest}", f"referrers/{digest}", "tags/list"):
            await mirror.ask(f"/v2/library/alpine/{target}", f"Authorization: {secret}")
        await mirror.blob(digest, f"Authorization: {secret}", method="HEAD")
        await mirror.ask("/v2/", f"Authorization: {secret}\x01broken")
    assert [entry[0] for entry in mirror.source.asked] == [
        "manifest", "manifest", "blob", "referrers", "tags", "blob_info"
    ]  # fmt: skip
    assert {entry[-1] for entry in mirror.source.asked} == {secret}
    assert "s3cret" not in repr(logs)
    assert manifest.raw == RAW


async def test_referrers_are_passed_on_as_they_are(mirror: Running) -> None:
    mirror.source.raw = FakeRaw(
        media_type=OCI_INDEX, body=b'{"manifests":[]}', headers={"oci-filters-applied": "artifactType", "X-Other": "1"}
    )
    digest = Digest.of(RAW)
    answer = await mirror.ask(f"/v2/org/app/referrers/{digest}?ns=ghcr.io&artifactType=a%2Fb")
    assert (answer.status, answer.body) == (200, b'{"manifests":[]}')
    assert answer.headers["content-type"] == OCI_INDEX
    assert answer.headers["oci-filters-applied"] == "artifactType"
    assert "x-other" not in answer.headers
    assert mirror.source.asked == [("referrers", "ghcr.io/org/app", str(digest), "a/b", None)]


async def test_a_part_of_the_referrers_would_hide_signatures(mirror: Running) -> None:
    mirror.source.raw = FakeRaw(headers={"Link": '</v2/library/alpine/referrers/x?n=1>; rel="next"'})
    assert (await mirror.ask(f"/v2/library/alpine/referrers/{Digest.of(RAW)}")).status == 404


@pytest.mark.parametrize("status", [401, 403, 404, 405, 429, 500, 503])
async def test_refused_lists_are_not_found(mirror: Running, status: int) -> None:
    mirror.source.raw = FakeRaw(status=status, headers={"WWW-Authenticate": 'Bearer realm="x"', "Retry-After": "1"})
    for route in (f"referrers/{Digest.of(RAW)}", "tags/list"):
        answer = await mirror.ask(f"/v2/library/alpine/{route}")
        assert answer.status == 404
        assert not {"www-authenticate", "retry-after"} & answer.headers.keys()


async def test_pages_of_tags_follow_each_other_through_the_mirror(mirror: Running) -> None:
    mirror.source.raw = FakeRaw(
        body=b'{"name":"org/app","tags":["1"]}', headers={"link": '</v2/org/app/tags/list?last=1&n=1>; rel="next"'}
    )
    first = await mirror.ask("/v2/ghcr.io/org/app/tags/list?n=1")
    assert first.headers["link"] == '</v2/ghcr.io/org/app/tags/list?n=1&last=1>; rel="next"'
    await mirror.ask("/v2/ghcr.io/org/app/tags/list?n=1&last=1")
    assert mirror.source.asked == [
        ("tags", "ghcr.io/org/app", "n=1", None),
        ("tags", "ghcr.io/org/app", "n=1&last=1", None),
    ]


async def test_what_the_door_refuses_has_a_body_that_clients_can_read(mirror: Running) -> None:
    for target, status, wanted in [
        ("/v1/_ping", 404, "UNSUPPORTED"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v2/a%2f..%2fb/manifests/latest", 404, "NAME_INVALID"),
        ("/v2/../../etc/passwd", 404, "UNSUPPORTED"),
        ("/v2/a/../b/tags/list", 404, "NAME_INVALID"),
        (f"/v2/a/blobs/md5:{'0' * 32}", 404, "DIGEST_INVALID"),
    ]:
        answer = await mirror.ask(target)
        assert (answer.status, code(answer.body)) == (status, wanted)
        assert answer.headers["content-type"] == "application/json"
    push = await mirror.ask("/v2/library/alpine/blobs/uploads/", "Content-Length: 0", method="POST")
    assert (push.status, code(push.body), push.headers["allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    assert mirror.source.asked == []


async def test_one_connection_is_kept_or_closed_as_the_client_wishes(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", RAW)
    target = "/v2/library/alpine/manifests/latest"
    async with connected(mirror.port) as (reader, writer):
        for _ in range(3):
            writer.write(request(target))
            assert (await read_answer(reader)).body == RAW
        writer.write(request(target, "Connection: close"))
        answer = await read_answer(reader)
        assert answer.headers["connection"] == "close"
        assert await reader.read() == b""


async def test_what_was_served_is_told(mirror: Running) -> None:
    mirror.source.add_manifest(HUB_ALPINE, "latest", RAW)
    await mirror.ask("/v2/")
    await mirror.ask("/v2/library/alpine/manifests/latest")
    await mirror.ask("/v2/library/alpine/manifests/latest", method="HEAD")
    await mirror.ask("/favicon.ico")
    told = [await mirror.told() for _ in range(4)]
    assert [entry[:2] for entry in told] == [("ping", 200), ("manifest", 200), ("manifest", 200), ("other", 404)]
    assert [entry[2] for entry in told[:3]] == [2, len(RAW), 0]
