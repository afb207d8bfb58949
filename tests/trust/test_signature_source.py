"""One contract for every source of signatures: the one in memory, for tests, and the agent's own registry client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import stamina
from support.registry import Endless, FakeRegistry, NoLength, Status, WrongLength
from trust_kit import (
    REPOSITORY,
    MemorySource,
    bundle,
    dumps,
    image,
    new_key,
    payload,
    referrer,
    signature_manifest,
    simple,
    statement,
)

from p2pdist.errors import ConfigError, UpstreamError, UpstreamInvalid
from p2pdist.oci import OCI_MANIFEST, Digest
from p2pdist.trust import SignatureSource, UpstreamSource
from p2pdist.trust.evidence import Form
from p2pdist.trust.fetch import gather
from p2pdist.trust.upstream import check_store_url, next_query
from p2pdist.upstream import Credentials, Upstreams, UpstreamSettings

KEY = new_key()
IMAGE = image()
SIG = f"sha256-{IMAGE.digest.hex}.sig"
SIGNED = signature_manifest([simple(KEY, payload(IMAGE))])
ATTACHED = [referrer(IMAGE, dumps(bundle(KEY, statement(IMAGE, subject=[{"n": n}])))) for n in range(5)]


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


@asynccontextmanager
async def asking(registry: FakeRegistry) -> AsyncIterator[UpstreamSource]:
    settings = UpstreamSettings(REPOSITORY.registry, registry.url)
    async with Upstreams([settings], Credentials()) as upstreams, aiohttp.ClientSession() as session:
        yield UpstreamSource(upstreams, session)


@asynccontextmanager
async def source(kind: str, tmp_path: Path) -> AsyncIterator[tuple[SignatureSource, str]]:
    """A source that holds SIGNED, ATTACHED and one file of a GPG store, and the base URL of that store."""
    if kind == "memory":
        memory = MemorySource()
        memory.manifests[SIG] = SIGNED[0]
        memory.add_blobs(SIGNED[1])
        for at in range(0, 5, 2):
            memory.attach(IMAGE, *ATTACHED[at : at + 2])
        memory.stores["file:///store/app/one@sha256=1/signature-1"] = b"gpg"
        yield memory, "file:///store"
        return
    async with FakeRegistry(page=2) as registry, asking(registry) as upstream:
        registry.add_manifest(REPOSITORY.name, SIGNED[0], OCI_MANIFEST, SIG)
        for raw, blobs in (SIGNED, *ATTACHED):
            registry.add_manifest(REPOSITORY.name, raw, OCI_MANIFEST)
            for blob in blobs:
                registry.add_blob(blob)
        place = tmp_path / "app" / "one@sha256=1"
        place.mkdir(parents=True)
        (place / "signature-1").write_bytes(b"gpg")
        yield upstream, tmp_path.as_uri()


@pytest.mark.parametrize("kind", ["memory", "upstream"])
async def test_every_source_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    async with source(kind, tmp_path) as (one, store):
        assert await one.manifest(REPOSITORY, SIG, 1 << 20) == SIGNED[0]
        assert await one.manifest(REPOSITORY, "sha256-none.sig", 1 << 20) is None
        blob = SIGNED[1][1]
        assert await one.blob(REPOSITORY, Digest.of(blob), len(blob)) == blob
        with pytest.raises(UpstreamError):
            await one.blob(REPOSITORY, Digest.of(b"none"), 4)
        listed, page = 0, await one.referrers(REPOSITORY, IMAGE.digest, None, 1 << 20)
        pages = 0
        while page is not None:
            pages += 1
            listed += page.body.count(b'"digest"')
            page = await one.referrers(REPOSITORY, IMAGE.digest, page.next, 1 << 20) if page.next else None
        assert (pages, listed) == (3, 5)
        assert await one.lookaside(store, "app/one@sha256=1/signature-1", 100) == b"gpg"
        assert await one.lookaside(store, "app/one@sha256=1/signature-2", 100) is None
        assert await one.on_behalf_of("Basic eA==").manifest(REPOSITORY, SIG, 1 << 20) == SIGNED[0]


async def test_a_registry_without_a_referrers_api_is_told_from_one_without_referrers() -> None:
    async with FakeRegistry(referrers=False) as registry, asking(registry) as upstream:
        assert await upstream.referrers(REPOSITORY, IMAGE.digest, None, 1000) is None
    async with FakeRegistry() as registry, asking(registry) as upstream:
        page = await upstream.referrers(REPOSITORY, IMAGE.digest, None, 1000)
        assert page is not None
        assert page.next is None


@pytest.mark.parametrize("fault", [Endless(), WrongLength(10_000_000), WrongLength(-5), NoLength()], ids=str)
async def test_no_more_of_a_blob_is_read_than_its_manifest_declares(fault: object) -> None:
    data, notes = simple(KEY, payload(IMAGE))
    async with FakeRegistry() as registry, asking(registry) as upstream:
        raw, blobs = signature_manifest([(data, notes)])
        registry.add_manifest(REPOSITORY.name, raw, OCI_MANIFEST, SIG)
        for blob in blobs:
            registry.add_blob(blob)
        registry.fail(fault, path="/blobs/")  # type: ignore[arg-type]
        evidence = await gather(upstream, REPOSITORY, IMAGE.digest, frozenset({Form.SIMPLE}), [], seconds=5)
        read = sum(len(candidate.raw) for candidate in evidence.candidates)
        assert read in (0, len(data))


@pytest.mark.parametrize("path", ["/manifests/", "/referrers/"])
async def test_a_list_or_manifest_without_end_is_cut_off(path: str) -> None:
    async with FakeRegistry() as registry, asking(registry) as upstream:
        registry.fail(Endless(), path=path)
        registry.fail(Status(200, body=b"[" * (5 << 20)), path=path)
        evidence = await gather(upstream, REPOSITORY, IMAGE.digest, frozenset(Form), [], seconds=5)
        assert evidence.candidates == ()


async def test_what_only_pretends_to_be_a_registry_is_no_registry() -> None:
    async with FakeRegistry() as registry, asking(registry) as upstream:
        registry.fail(Status(200, {"Content-Type": "text/html"}, b"<html>sign in</html>"))
        evidence = await gather(upstream, REPOSITORY, IMAGE.digest, frozenset(Form), [], seconds=5)
        assert evidence.candidates == ()
        assert evidence.unread


async def test_a_gpg_store_by_http_is_read_within_the_limit() -> None:
    async with FakeRegistry() as registry, asking(registry) as upstream:
        path = "app/one@sha256=1/signature-1"
        registry.fail(Status(200, body=b"x" * 5000), path="signature-1$")
        with pytest.raises(UpstreamInvalid, match="5000"):
            await upstream.lookaside(f"{registry.url}/store", path, 100)
        assert await upstream.lookaside(f"{registry.url}/store", path, 5000) == b"x" * 5000
        assert await upstream.lookaside(f"{registry.url}/store", path[:-1] + "2", 100) is None
        registry.heal()
        registry.fail(Status(302, {"Location": "http://127.0.0.1:1/"}), path="signature-1$")
        with pytest.raises(UpstreamError):
            await upstream.lookaside(f"{registry.url}/store", path, 100)
        with pytest.raises(UpstreamError):
            await upstream.lookaside("http://127.0.0.1:1", path, 100)


@pytest.mark.parametrize(
    ("link", "query"),
    [
        (None, None),
        ("", None),
        ('</v2/a/referrers/x?n=1&last=y>; rel="next"', "n=1&last=y"),
        ("</v2/a/referrers/x?n=1>; rel=next", "n=1"),
        ('<https://evil.test/v2/a?n=1>; rel="next"', "n=1"),
        ('</v2/a?p=1>; rel="prev", </v2/a?p=3>; rel="next"', "p=3"),
        ('</v2/a?p=1>; rel="prev"', None),
        ('</v2/a>; rel="next"', None),
        ("<" * 10_000, None),
    ],
)
def test_only_the_query_of_a_next_link_is_followed(link: str | None, query: str | None) -> None:
    assert next_query(link) == query


@pytest.mark.parametrize(
    "url", ["", "store", "ftp://x", "http://", "file://host/x", "https://u:p@x/", "https://x/?q", "file:store"]
)
def test_a_store_that_can_not_be_used_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigError):
        check_store_url(url)
