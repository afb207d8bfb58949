"""Manifests, tags and referrers as a registry answers them, and as it must not."""

import pytest
from support.images import descriptor, make_image
from support.registry import Corrupt, Cut, Endless, Headers, NoLength, Status, WrongLength

from p2pdist.errors import UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnreachable
from p2pdist.oci import ACCEPT_MANIFESTS, OCI_INDEX, OCI_MANIFEST, Digest, Manifest, parse_manifest
from p2pdist.protocol.limits import MAX_MANIFEST
from p2pdist.upstream import ManifestInfo


async def test_head_and_get_by_tag_and_digest_agree(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    client = await client_of(fake)
    for target in ("latest", str(image.digest)):
        info = await client.registry.head_manifest(client.repository, target)
        assert info == ManifestInfo(image.digest, OCI_MANIFEST, len(image.raw))
        fetched = await client.registry.get_manifest(client.repository, target)
        assert (fetched.raw, fetched.media_type, fetched.digest) == (image.raw, OCI_MANIFEST, image.digest)
        assert isinstance(parse_manifest(fetched.raw, fetched.media_type), Manifest)
    for one in fake.log:
        assert one.headers["Accept"] == ACCEPT_MANIFESTS and one.headers["Accept-Encoding"] == "identity"
        assert one.headers["User-Agent"].startswith("p2pdist/")


async def test_an_index_by_tag(client_of, fake) -> None:
    digest = fake.add_index("library/a", "latest", [make_image([b"x"]), make_image([b"y"], architecture="arm64")])
    client = await client_of(fake)
    fetched = await client.registry.get_manifest(client.repository, "latest")
    assert (fetched.digest, fetched.media_type) == (digest, OCI_INDEX)


async def test_a_sha512_digest_is_checked_by_its_own_algorithm(client_of, fake) -> None:
    image = make_image([b"x"])
    digest = Digest.of(image.raw, "sha512")
    fake.manifests["library/a"] = {str(digest): (image.raw, image.media_type)}
    client = await client_of(fake)
    assert (await client.registry.get_manifest(client.repository, str(digest))).digest == digest


async def test_wrong_bytes_of_a_manifest_by_digest_are_refused_with_both_digests(client_of, fake) -> None:
    image = fake.add_image("library/a", None, [b"x"])
    fake.fail(Corrupt(at=20))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match=f"wanted the manifest {image.digest}, got sha256:") as caught:
        await client.registry.get_manifest(client.repository, str(image.digest))
    assert not caught.value.temporary and len(fake.log) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Headers({"Docker-Content-Digest": None}),
        Headers({"Docker-Content-Digest": "md5:1"}),
        Headers({"Docker-Content-Digest": "x" * 5000}),
    ],
)
async def test_head_without_a_usable_digest_header_says_so(client_of, fake, fault) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    fake.fail(fault)
    client = await client_of(fake)
    assert (await client.registry.head_manifest(client.repository, "latest")).digest is None
    assert (await client.registry.head_manifest(client.repository, str(image.digest))).digest == image.digest


async def test_the_digest_header_is_never_believed_for_what_was_read(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    fake.fail(Headers({"Docker-Content-Digest": "sha256:" + "0" * 64}))
    client = await client_of(fake)
    assert (await client.registry.get_manifest(client.repository, "latest")).digest == image.digest


@pytest.mark.parametrize("status", [405, 501])
async def test_a_registry_without_head_is_asked_by_get(client_of, fake, status: int) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    fake.fail(Status(status), method="HEAD")
    client = await client_of(fake)
    info = await client.registry.head_manifest(client.repository, "latest")
    assert info == ManifestInfo(image.digest, OCI_MANIFEST, len(image.raw))


async def test_a_manifest_of_four_mebibytes_is_taken_and_one_byte_more_is_refused_unread(client_of, fake) -> None:
    client = await client_of(fake)
    fake.manifests["library/a"] = {"big": (b" " * MAX_MANIFEST, "x"), "huge": (b" " * (MAX_MANIFEST + 1), "x")}
    assert len((await client.registry.get_manifest(client.repository, "big")).raw) == MAX_MANIFEST
    with pytest.raises(UpstreamInvalid, match=str(MAX_MANIFEST)):
        await client.registry.get_manifest(client.repository, "huge")


async def test_an_endless_manifest_is_refused_at_the_limit(client_of, fake) -> None:
    fake.add_image("library/a", "latest", [b"x"])
    fake.fail(Endless())
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match=str(MAX_MANIFEST)):
        await client.registry.get_manifest(client.repository, "latest")
    assert fake.log[0].sent < 3 * MAX_MANIFEST and len(fake.log) == 1


async def test_a_manifest_without_length_is_read_to_its_end(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    fake.fail(NoLength())
    client = await client_of(fake)
    assert (await client.registry.get_manifest(client.repository, "latest")).raw == image.raw


async def test_a_manifest_that_is_cut_is_asked_again_and_at_last_given_up(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    client = await client_of(fake)
    fake.fail(Cut(50), times=2)
    assert (await client.registry.get_manifest(client.repository, "latest")).raw == image.raw
    fake.fail(Cut(50, reset=True))
    with pytest.raises(UpstreamUnreachable):
        await client.registry.get_manifest(client.repository, "latest")
    assert len(fake.log) == 6


@pytest.mark.parametrize("delta", [-5, 5])
async def test_a_manifest_by_digest_of_wrong_length_is_refused(client_of, fake, delta: int) -> None:
    image = fake.add_image("library/a", None, [b"x"])
    fake.fail(WrongLength(delta))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="wanted the manifest"):
        await client.registry.get_manifest(client.repository, str(image.digest))


async def test_content_encoding_is_never_decoded(client_of, fake) -> None:
    image = fake.add_image("library/a", "latest", [b"x"])
    fake.fail(Headers({"Content-Encoding": "gzip"}))
    client = await client_of(fake)
    assert (await client.registry.get_manifest(client.repository, "latest")).raw == image.raw


@pytest.mark.parametrize(
    ("status", "error", "temporary"),
    [
        (404, UpstreamNotFound, False),
        (403, UpstreamDenied, False),
        (500, UpstreamError, True),
        (502, UpstreamError, True),
        (503, UpstreamError, True),
        (504, UpstreamError, True),
        (400, UpstreamInvalid, False),
        (204, UpstreamInvalid, False),
        (206, UpstreamInvalid, False),
        (416, UpstreamInvalid, False),
    ],
)
async def test_each_status_is_the_error_of_whose_fault_it_is(client_of, fake, status, error, temporary) -> None:
    body = b'{"errors":[{"code":"SOME_CODE","message":"because\\u001b[31m\\n of this"}]}'
    fake.fail(Status(status, body=body if status != 204 else b""))
    client = await client_of(fake)
    with pytest.raises(UpstreamError) as caught:
        await client.registry.get_manifest(client.repository, "latest")
    assert type(caught.value) is error and caught.value.status == status and caught.value.temporary is temporary
    if status != 204:
        assert "SOME_CODE: because" in str(caught.value)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(fake.log) == (3 if temporary else 1)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>" * 10_000, b"{}", b'{"errors":[]}', b'{"errors":{}}', b'{"errors":[1]}', b"[" * 8000, b"\xff"],
)
async def test_an_error_body_of_any_kind_makes_a_short_text(client_of, fake, body: bytes) -> None:
    fake.fail(Status(404, body=body))
    client = await client_of(fake)
    with pytest.raises(UpstreamNotFound) as caught:
        await client.registry.get_manifest(client.repository, "latest")
    assert len(str(caught.value)) < 200


async def test_referrers_come_page_by_page_with_their_link(client_of) -> None:
    from support.registry import FakeRegistry

    async with FakeRegistry(page=1) as fake:
        image = fake.add_image("library/a", "latest", [b"x"])
        for number in range(2):
            fake.add_image(
                "library/a",
                None,
                [b"%d" % number],
                subject=descriptor(image.raw, OCI_MANIFEST),
                artifact_type="sig/x+y",
            )
        client = await client_of(fake)
        first = await client.registry.referrers(client.repository, image.digest, None)
        assert first.status == 200 and first.media_type == OCI_INDEX and b"sig/x+y" in first.body
        assert first.headers["Link"] == f'</v2/library/a/referrers/{image.digest}?after=1>; rel="next"'
        second = await client.registry.referrers(client.repository, image.digest, None, query="after=1")
        assert "Link" not in second.headers and second.body != first.body
        filtered = await client.registry.referrers(client.repository, image.digest, "sig/x+y")
        assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
        assert fake.log[-1].query == "artifactType=sig/x%2By"


async def test_a_registry_without_referrers_is_not_found(client_of) -> None:
    from support.registry import FakeRegistry

    async with FakeRegistry(referrers=False) as fake:
        client = await client_of(fake)
        with pytest.raises(UpstreamNotFound):
            await client.registry.referrers(client.repository, Digest.of(b""), None)


async def test_tags_with_their_page_and_link(client_of, fake) -> None:
    for tag in ("a", "b", "c"):
        fake.add_image("library/a", tag, [b"x"])
    client = await client_of(fake)
    answer = await client.registry.tags_list(client.repository, "n=2&last=a")
    assert answer.body == b'{"name": "library/a", "tags": ["b", "c"]}'
    assert "Link" in (await client.registry.tags_list(client.repository, "n=1")).headers


@pytest.mark.parametrize("query", ["a b", "a\r\nHost: x", "#x", "?x", "ä", "n=" + "1" * 3000])
async def test_a_query_that_could_be_something_else_is_not_passed_on(client_of, fake, query: str) -> None:
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid):
        await client.registry.tags_list(client.repository, query)
    assert not fake.log
