"""Redirects to object storage: followed by hand, without what is not meant for it."""

import json

import pytest
from aiohttp import web
from support.registry import BasicAuth, BearerAuth, Call, FakeRegistry, Status, noise

from p2pdist.errors import UpstreamDenied, UpstreamError, UpstreamInvalid, UpstreamNotFound
from p2pdist.upstream import Credentials
from p2pdist.upstream.transport import MAX_REDIRECTS

DATA = noise(300_000)


async def test_a_blob_in_object_storage_is_read_there_without_the_token(client_of) -> None:
    async with FakeRegistry(auth=BearerAuth(), storage=True) as fake:
        digest = fake.add_blob(DATA)
        client = await client_of(fake)
        assert await client.read(digest, size=len(DATA)) == DATA
        assert await client.read(digest, start=1000, end=2000, size=len(DATA)) == DATA[1000:2000]
        assert await client.registry.head_blob(client.repository, digest) == len(DATA)
        assert len(fake.storage_log) == 3
        for one in fake.storage_log:  # the same host, another port: another origin
            assert "Authorization" not in one.headers and one.query.startswith("X-Signature=secret-")
        assert [one.headers.get("Range") for one in fake.storage_log] == [None, "bytes=1000-1999", None]


async def test_the_signed_query_of_a_redirect_is_sent_as_it_came(client_of, fake) -> None:
    digest = fake.add_blob(DATA)
    query = "X-Sig=a%2Fb%2bc+d%20e&x=%E4&y=[1]&z=a=b"
    fake.fail(Status(302, {"Location": f"{fake.url}/v2/other/blobs/{digest}?{query}"}), path="library")
    seen = []

    async def record(request: web.Request) -> None:
        seen.append(request.raw_path)

    fake.fail(Call(record), path="other")
    client = await client_of(fake)
    assert await client.read(digest) == DATA
    assert seen == [f"/v2/other/blobs/{digest}?{query}"]


async def test_authorization_stays_with_a_redirect_within_the_same_origin(client_of) -> None:
    async with FakeRegistry(auth=BasicAuth({"u": "p"})) as fake:
        digest = fake.add_blob(DATA)
        fake.fail(Status(307, {"Location": f"/v2/moved/blobs/{digest}"}), path="library")
        client = await client_of(fake)
        assert await _read(client, digest, "Basic dTpw") == DATA


async def _read(client, digest, authorization: str) -> bytes:
    return await client.read(digest, authorization=authorization)


async def test_authorization_does_not_come_back_when_the_chain_returns(client_of) -> None:
    # Whoever runs the storage could else make us use our token on any path of the registry.
    async with FakeRegistry(auth=BasicAuth({"u": "p"})) as fake, FakeRegistry() as storage:
        digest = fake.add_blob(DATA)
        fake.fail(Status(307, {"Location": f"{storage.url}/there"}), path="library")
        storage.fail(Status(307, {"Location": f"{fake.url}/v2/other/blobs/{digest}"}))
        client = await client_of(fake)
        with pytest.raises(UpstreamDenied):
            await _read(client, digest, "Basic dTpw")
        assert [one.headers.get("Authorization") for one in (*storage.log, *fake.requests("other"))] == [None, None]


@pytest.mark.parametrize(
    "location", ["ftp://x/", "file:///etc/passwd", "http://u:p@127.0.0.1/", "http://", "http://[::1/", "", "gopher://x"]
)
async def test_a_redirect_to_anything_but_a_plain_http_url_is_refused(client_of, fake, location: str) -> None:
    fake.fail(Status(307, {"Location": location} if location else {}))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="redirects"):
        await client.registry.get_manifest(client.repository, "latest")


async def test_redirects_without_end_are_refused(client_of, fake) -> None:
    fake.fail(Status(307, {"Location": "/v2/library/a/manifests/latest?again"}))
    client = await client_of(fake)
    with pytest.raises(UpstreamInvalid, match="redirects"):
        await client.registry.get_manifest(client.repository, "latest")
    assert len(fake.log) == MAX_REDIRECTS + 1


async def test_a_signature_refused_by_the_storage_is_temporary_and_says_nothing_of_our_rights(client_of) -> None:
    # Expired signatures look like this. Taken for a denial, it would end the swarm of the whole cluster.
    async with FakeRegistry(storage=True) as fake:
        digest = fake.add_blob(DATA)
        fake.fail(Status(403), path="^/storage", times=1)
        client = await client_of(fake)
        assert await client.read(digest) == DATA
        fake.fail(Status(403), path="^/storage")
        with pytest.raises(UpstreamError) as caught:
            await client.read(digest)
        assert type(caught.value) is UpstreamError and caught.value.temporary and caught.value.status == 403


async def test_a_storage_that_asks_for_a_login_gets_none(client_of, tmp_path) -> None:
    async with FakeRegistry(storage=True) as fake, FakeRegistry() as thief:
        digest = fake.add_blob(DATA)
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"auths": {fake.name: {"username": "alice", "password": "hunter2"}}}))
        for challenge in ("Basic", f'Bearer realm="{thief.url}/token"'):
            fake.heal()
            fake.fail(Status(401, {"WWW-Authenticate": challenge}), path="^/storage")
            client = await client_of(fake, Credentials(config))
            with pytest.raises(UpstreamError) as caught:
                await client.read(digest)
            assert type(caught.value) is UpstreamError
        assert not thief.log and all("Authorization" not in one.headers for one in fake.requests())


async def test_an_object_that_the_storage_lost_is_not_found(client_of) -> None:
    async with FakeRegistry(storage=True) as fake:
        digest = fake.add_blob(DATA)
        fake.fail(Status(404), path="^/storage")
        client = await client_of(fake)
        with pytest.raises(UpstreamNotFound):
            await client.read(digest)


async def test_no_query_string_of_the_storage_gets_into_an_error(client_of) -> None:
    async with FakeRegistry(storage=True) as fake:
        digest = fake.add_blob(DATA)
        client = await client_of(fake)
        for fault in (Status(403), Status(404), Status(500), Status(307, {"Location": "nowhere://x?secret-1"})):
            fake.heal()
            fake.fail(fault, path="^/storage")
            with pytest.raises(UpstreamError) as caught:
                await client.read(digest)
            error: BaseException | None = caught.value
            while error is not None:
                assert "secret" not in str(error)
                error = error.__cause__


async def test_a_url_signed_for_get_alone_still_tells_the_size(client_of) -> None:
    async with FakeRegistry(storage=True) as fake:
        digest = fake.add_blob(DATA)
        fake.fail(Status(403), path="^/storage", method="HEAD")
        client = await client_of(fake)
        assert await client.registry.head_blob(client.repository, digest) == len(DATA)
        assert fake.bytes_sent(digest) == 1
