"""Basic, and the ways in which somebody could get at credentials that aren't theirs."""

import base64

import pytest
from support.registry import BasicAuth, BearerAuth, FakeRegistry, Status

from p2pdist.errors import UpstreamDenied, UpstreamInvalid

ALICE = {"alice": "hunter2"}
BASIC_ALICE = "Basic " + base64.b64encode(b"alice:hunter2").decode()


async def test_basic_is_sent_after_the_first_401_and_remembered(client_of, login) -> None:
    async with FakeRegistry(auth=BasicAuth(ALICE)) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, login(fake))
        for _ in range(3):
            await client.registry.get_manifest(client.repository, "latest")
        assert [one.status for one in fake.requests("^/v2/")] == [401, 200, 200, 200]
        assert [one.headers.get("Authorization") for one in fake.log] == [None, *[BASIC_ALICE] * 3]


async def test_basic_with_wrong_credentials_is_denied_and_a_new_password_is_picked_up(client_of, login) -> None:
    async with FakeRegistry(auth=BasicAuth(ALICE)) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, login(fake, {"username": "alice", "password": "old"}))
        with pytest.raises(UpstreamDenied):
            await client.registry.get_manifest(client.repository, "latest")
        with pytest.raises(UpstreamDenied, match="refuses the user 'alice'"):
            await client.registry.get_manifest(client.repository, "latest")
        login(fake)
        assert (await client.registry.get_manifest(client.repository, "latest")).raw


async def test_basic_without_credentials_is_denied_with_the_reason(client_of) -> None:
    async with FakeRegistry(auth=BasicAuth(ALICE)) as fake:
        client = await client_of(fake)
        with pytest.raises(UpstreamDenied, match=r"wants a user and a password.*no credentials file"):
            await client.registry.get_manifest(client.repository, "latest")


async def test_an_unknown_scheme_is_denied_by_name(client_of, fake) -> None:
    fake.fail(Status(401, {"WWW-Authenticate": "Negotiate"}))
    client = await client_of(fake)
    with pytest.raises(UpstreamDenied, match="negotiate"):
        await client.registry.get_manifest(client.repository, "latest")


# --- attacks ---


async def test_a_clients_own_authorization_is_sent_verbatim_and_never_replaced_by_ours(client_of, login) -> None:
    async with FakeRegistry(auth=BearerAuth(users=ALICE)) as fake:
        fake.add_image("library/a", "latest", [])
        client = await client_of(fake, login(fake))
        with pytest.raises(UpstreamDenied):
            await client.registry.get_manifest(client.repository, "latest", authorization="Bearer stolen")
        assert [one.headers.get("Authorization") for one in fake.log] == ["Bearer stolen"]


async def test_a_clients_authorization_with_a_line_break_is_refused(client_of, fake) -> None:
    client = await client_of(fake)
    with pytest.raises(UpstreamDenied):
        await client.registry.head_manifest(client.repository, "latest", authorization="Bearer x\r\nHost: y")
    assert not fake.log


@pytest.mark.parametrize(
    "realm",
    [
        "ftp://x/token",
        "/token",
        "",
        "not a url",
        "http://user:pw@x/token",
        "http://",
        "http://[/",
        "file:///etc/passwd",
    ],
)
async def test_a_realm_that_is_no_plain_url_gets_nothing(client_of, login, realm: str) -> None:
    async with FakeRegistry(auth=BearerAuth(users=ALICE, realm=realm or "x")) as fake:
        client = await client_of(fake, login(fake))
        with pytest.raises(UpstreamDenied, match="token service"):
            await client.registry.get_manifest(client.repository, "latest")


async def test_credentials_of_another_registry_are_never_used(client_of, login) -> None:
    # A hostile registry names the other's token service: it gets what is ours for *it*, which is nothing.
    async with FakeRegistry(auth=BearerAuth(users=ALICE)) as good:
        async with FakeRegistry(auth=BearerAuth(realm=f"{good.url}/token")) as evil:
            client = await client_of(evil, login(good))
            with pytest.raises(UpstreamDenied):
                await client.registry.get_manifest(client.repository, "latest")
        assert all("Authorization" not in one.headers for one in good.requests("^/token"))


async def test_a_token_service_that_redirects_elsewhere_does_not_pass_the_login_on(client_of, login) -> None:
    async with FakeRegistry(auth=BearerAuth(users=ALICE)) as fake, FakeRegistry() as thief:
        fake.fail(Status(307, {"Location": f"{thief.url}/steal"}), path="^/token")
        client = await client_of(fake, login(fake))
        with pytest.raises(UpstreamInvalid, match="404"):  # not UpstreamNotFound: the image may well be there
            await client.registry.get_manifest(client.repository, "latest")
        assert thief.log and all("Authorization" not in one.headers for one in thief.log)


async def test_an_identity_token_is_not_posted_on_to_where_the_token_service_redirects(client_of, login) -> None:
    async with FakeRegistry(auth=BearerAuth()) as fake, FakeRegistry() as thief:
        fake.fail(Status(308, {"Location": f"{thief.url}/steal"}), path="^/token")
        client = await client_of(fake, login(fake, {"identitytoken": "secret"}))
        with pytest.raises(UpstreamInvalid):
            await client.registry.get_manifest(client.repository, "latest")
        assert not thief.log
