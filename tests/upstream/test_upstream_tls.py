"""Over https: whose certificates are believed, and no credentials to a token service over plain http."""

import json

import pytest
from support.registry import BearerAuth, FakeRegistry, noise

from p2pdist.errors import UpstreamDenied, UpstreamUnreachable
from p2pdist.upstream import Credentials


async def test_with_its_ca_file_a_private_registry_and_its_storage_and_token_service_are_trusted(
    client_of, server_tls
) -> None:
    context, ca = server_tls
    async with FakeRegistry(tls=context, storage=True, auth=BearerAuth()) as fake:
        digest = fake.add_blob(noise(1000))
        client = await client_of(fake, ca_file=ca)
        assert await client.read(digest) == noise(1000)
        assert fake.storage_log and fake.requests("^/token")


async def test_without_its_ca_file_nothing_is_sent_and_the_text_says_what_to_set(client_of, server_tls) -> None:
    async with FakeRegistry(tls=server_tls[0]) as fake:
        client = await client_of(fake)
        with pytest.raises(UpstreamUnreachable, match="set ca_file"):
            await client.registry.get_manifest(client.repository, "latest")
        assert not fake.log


async def test_a_registry_over_https_can_not_have_credentials_sent_over_plain_http(
    client_of, server_tls, tmp_path
) -> None:
    context, ca = server_tls
    async with FakeRegistry(auth=BearerAuth()) as plain:
        async with FakeRegistry(tls=context, auth=BearerAuth(realm=f"{plain.url}/token")) as fake:
            config = tmp_path / "config.json"
            config.write_text(json.dumps({"auths": {fake.name: {"username": "alice", "password": "hunter2"}}}))
            client = await client_of(fake, Credentials(config), ca_file=ca)
            with pytest.raises(UpstreamDenied, match="over plain http"):
                await client.registry.get_manifest(client.repository, "latest")
        assert not plain.log


async def test_a_redirect_from_https_to_http_loses_the_authorization(client_of, server_tls) -> None:
    from support.registry import Status

    context, ca = server_tls
    async with FakeRegistry() as plain, FakeRegistry(tls=context) as fake:
        plain.add_image("library/a", "latest", [])
        fake.fail(Status(302, {"Location": f"{plain.url}/v2/library/a/manifests/latest"}))
        client = await client_of(fake, ca_file=ca)
        await client.registry.get_manifest(client.repository, "latest", authorization="Bearer secret")
        assert fake.log[0].headers["Authorization"] == "Bearer secret"
        assert "Authorization" not in plain.log[0].headers
