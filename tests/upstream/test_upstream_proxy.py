"""Through a real proxy: what goes to whom, with which certificates, and what is said when it doesn't work."""

import asyncio
import json
import re
import time

import pytest
from support.proxy import FakeProxy
from support.registry import BearerAuth, FakeRegistry, Status, noise

from p2pdist.agent import make_upstreams
from p2pdist.config import load_agent
from p2pdist.errors import UpstreamDenied, UpstreamUnreachable
from p2pdist.oci import Repository
from p2pdist.proxies import Proxies, Proxy
from p2pdist.upstream import Credentials

DATA = noise(300_000)
LOGIN = "fleet:pr0xy-secret"


def through(proxy: FakeProxy, login: str = LOGIN) -> Proxies:
    return Proxies.only(Proxy.parse(proxy.url_with(login)))


def credentials(tmp_path, fake: FakeRegistry) -> Credentials:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {fake.name: {"username": "alice", "password": "hunter2"}}}))
    return Credentials(file)


@pytest.mark.parametrize("encrypted_proxy", [False, True])
async def test_an_https_registry_its_token_service_and_its_storage_are_reached_by_connect_alone(
    client_of, server_tls, tmp_path, encrypted_proxy: bool
) -> None:
    context, ca = server_tls
    async with (
        FakeProxy(login=LOGIN, tls=context if encrypted_proxy else None) as proxy,
        FakeRegistry(tls=context, storage=True, auth=BearerAuth(users={"alice": "hunter2"})) as fake,
    ):
        digest = fake.add_blob(DATA)
        client = await client_of(fake, credentials(tmp_path, fake), ca_file=ca, proxies=through(proxy))
        assert await client.read(digest) == DATA
        assert {one.method for one in proxy.asked} == {"CONNECT"}
        assert {one.target for one in proxy.asked} == {fake.name, f"127.0.0.1:{fake.storage_port}"}
        assert all("authorization" not in one.headers for one in proxy.asked), "the registry's login is not the proxy's"
        assert all("Proxy-Authorization" not in one.headers for one in (*fake.log, *fake.storage_log))


async def test_a_tunnel_does_not_weaken_what_certificates_are_believed(client_of, server_tls) -> None:
    async with FakeProxy() as proxy, FakeRegistry(tls=server_tls[0]) as fake:
        client = await client_of(fake, proxies=Proxies.only(Proxy.parse(proxy.url)))
        with pytest.raises(UpstreamUnreachable, match=r"through the proxy http://127.*certificate.*set ca_file"):
            await client.registry.get_manifest(client.repository, "latest")
        assert proxy.asked and not fake.log


async def test_an_http_registry_gets_the_request_and_never_the_proxys_login(client_of) -> None:
    async with FakeProxy(login=LOGIN) as proxy, FakeRegistry(storage=True) as fake:
        digest = fake.add_blob(DATA)
        client = await client_of(fake, proxies=through(proxy))
        assert await client.read(digest, authorization="Bearer own") == DATA
        assert await client.read(digest, start=1000, end=2000, size=len(DATA)) == DATA[1000:2000]
        assert [one.method for one in proxy.asked] == ["GET"] * 4
        assert all("Proxy-Authorization" not in one.headers for one in (*fake.log, *fake.storage_log))


async def test_a_host_that_needs_no_proxy_is_asked_without_the_proxys_login(client_of) -> None:
    async with (
        FakeProxy(login=LOGIN, names={"registry.test": "127.0.0.1"}) as proxy,
        FakeRegistry() as fake,
        FakeRegistry() as storage,
    ):
        digest = storage.add_blob(DATA)
        fake.fail(Status(307, {"Location": f"{storage.url}/v2/library/a/blobs/{digest}"}), path="/blobs/")
        url = f"http://registry.test:{fake.port}"
        proxies = Proxies.of_environment({"HTTP_PROXY": proxy.url_with(LOGIN)})
        client = await client_of(fake, url=url, proxies=proxies)
        assert await client.read(digest) == DATA
        assert [one.target for one in proxy.asked] == [f"registry.test:{fake.port}"]
        assert [name for name in storage.log[0].headers if name.lower().startswith("proxy")] == []


async def test_an_agent_goes_by_the_environment_and_by_what_is_configured_for_a_registry(tmp_path) -> None:
    async with FakeProxy(names={"registry.test": "127.0.0.1"}) as proxy, FakeRegistry() as fake:
        image = fake.add_image("library/a", "1", [noise(1000)])
        name, env = f"registry.test:{fake.port}", {"http_proxy": proxy.url}
        config = tmp_path / "agent.toml"

        async def read(options: str, env: dict[str, str]) -> None:
            config.write_text(f'[[registries]]\nname = "{name}"\nurl = "http://{name}"\n{options}\n')
            async with make_upstreams(load_agent(config, env)) as upstreams:
                await upstreams.registry(name).get_manifest(Repository(name, "library/a"), str(image.digest))

        await read("", env)
        assert len(proxy.asked) == 1
        await read(f'proxy = "{proxy.url}"', {})
        assert len(proxy.asked) == 2
        for options, variables in (('proxy = "none"', env), ("", {**env, "NO_PROXY": ".test"})):
            with pytest.raises(UpstreamUnreachable, match=r"registry.test.*no connection"):
                await read(options, variables)
        assert len(proxy.asked) == 2
        unlisted = load_agent(None, {"HTTPS_PROXY": proxy.url, "P2PDIST_UPSTREAM_ALLOW_ANY": "true"})
        async with make_upstreams(unlisted) as upstreams:
            with pytest.raises(UpstreamUnreachable, match="TLS"):  # https follows from the name
                await upstreams.registry(name).get_manifest(Repository(name, "library/a"), "1")
        assert proxy.asked[-1].method == "CONNECT"


@pytest.mark.parametrize("https", [False, True])
async def test_a_wrong_login_is_said_as_the_proxys_refusal_and_is_not_shown(client_of, server_tls, https: bool) -> None:
    context, ca = server_tls
    async with FakeProxy(login=LOGIN) as proxy, FakeRegistry(tls=context if https else None) as fake:
        client = await client_of(fake, ca_file=ca, proxies=through(proxy, "fleet:wrong-secret"))
        with pytest.raises(UpstreamUnreachable, match=rf"through the proxy {re.escape(proxy.url)}: .*407") as refused:
            await client.registry.get_manifest(client.repository, "latest")
        assert not isinstance(refused.value, UpstreamDenied), "the registry has denied nothing"
        assert "secret" not in str(refused.value) and not fake.log


@pytest.mark.parametrize("https", [False, True])
async def test_a_proxy_that_is_gone_is_named(client_of, server_tls, https: bool) -> None:
    context, ca = server_tls
    async with FakeRegistry(tls=context if https else None) as fake:
        async with FakeProxy() as proxy:
            pass
        client = await client_of(fake, ca_file=ca, proxies=through(proxy))
        named = rf"through the proxy {re.escape(proxy.url)}: no connection to the proxy"
        with pytest.raises(UpstreamUnreachable, match=named) as refused:
            await client.registry.get_manifest(client.repository, "latest")
        assert "secret" not in str(refused.value) and not fake.log


async def test_a_proxy_that_opens_no_connection_is_named_with_its_answer(client_of, server_tls) -> None:
    context, ca = server_tls
    async with FakeProxy(answer=503) as proxy, FakeRegistry(tls=context) as fake:
        client = await client_of(fake, ca_file=ca, proxies=through(proxy))
        with pytest.raises(UpstreamUnreachable, match=r"the proxy opens no connection there \(503\)"):
            await client.registry.get_manifest(client.repository, "latest")


async def test_a_proxy_that_never_answers_connect_holds_no_blob_up_for_ever(client_of, server_tls) -> None:
    context, ca = server_tls
    async with FakeProxy(silent=True) as proxy, FakeRegistry(tls=context) as fake:
        digest = fake.add_blob(DATA)
        client = await client_of(
            fake, ca_file=ca, proxies=through(proxy), connect_timeout=0.1, stall_timeout=0.2, max_connections=1
        )
        begin = time.monotonic()
        async with asyncio.timeout(60):
            with pytest.raises(UpstreamUnreachable, match="through the proxy"):
                await client.read(digest)
        assert time.monotonic() - begin >= 0.3
