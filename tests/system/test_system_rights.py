"""Real clients with a user's own login at a private repository, and an agent that has none: who logs in where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.fleet import Fleet, Node, until
from support.registry import BearerAuth, FakeRegistry, Image, noise

pytestmark = pytest.mark.system

PRIVATE = BearerAuth(users={"alice": "wonder"}, private=frozenset({"app/a"}))


@asynccontextmanager
async def private_image(directory: Path) -> AsyncIterator[tuple[FakeRegistry, Node, Image]]:
    """At a registry with a token service, and not yet at the agent."""
    async with FakeRegistry(auth=PRIVATE, linked=True) as registry, Fleet(directory, registry, tracked=False) as fleet:
        image = registry.add_image("app/a", "1", [noise(1 << 20, 1), noise(3000, 2)])
        yield registry, await fleet.start(), image


async def run(*argv: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(errors="replace")


@asynccontextmanager
async def containerd(directory: Path) -> AsyncIterator[str]:
    """The address of one of the test's own."""
    config = directory / "containerd.toml"
    address = directory / "containerd.sock"
    off = '"io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"'
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'disabled_plugins = [{off}]\n[grpc]\naddress = "{address}"\n'
    )
    log = (directory / "containerd.log").open("wb")
    process = await asyncio.create_subprocess_exec("containerd", "-c", str(config), stdout=log, stderr=log)
    try:
        await until(address.exists)
        yield str(address)
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def test_containerd_logs_in_at_the_upstream_and_gets_the_image_through_the_agent(tmp_path: Path) -> None:
    """The agent passes the upstream's challenge on; the password goes to the upstream's token service only."""
    async with private_image(tmp_path) as (registry, node, image), containerd(tmp_path) as address:
        hosts = tmp_path / "certs.d" / "_default"
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'[host."{node.url}"]\n  capabilities = ["pull", "resolve"]\n')
        fetch = ["ctr", "-a", address, "content", "fetch", "--hosts-dir", str(hosts.parent)]
        name = f"{registry.name}/app/a:1"

        status, out = await run(*fetch, name)
        assert status != 0 and image.digest.hex not in out, out

        status, out = await run(*fetch, "--user", "alice:wonder", name)
        assert status == 0, out
        answers = node.agent.status()["mirror"]["answers"]
        assert answers["manifest"]["401"] > 0 and answers["manifest"]["200"] > 0
        assert answers["blob"] == {"200": len(image.blobs)}  # all of it came through the agent
        assert all(node.agent._store.find(blob) is not None for blob in image.blobs)


async def test_skopeo_with_its_users_login_goes_on_at_the_upstream(tmp_path: Path) -> None:
    """containers/image has no login for a mirror: refused there, it asks the registry itself."""
    async with private_image(tmp_path) as (registry, node, image):
        conf = tmp_path / "registries.conf"
        port = registry.name.replace(":", "__")
        conf.write_text(
            f'[[registry]]\nlocation = "{registry.name}"\ninsecure = true\n[[registry.mirror]]\n'
            f'location = "{node.url.removeprefix("http://")}/{port}"\ninsecure = true\n'
        )
        copy = ["skopeo", "--insecure-policy", "--registries-conf", str(conf), "copy", "--src-no-creds"]
        source, target = f"docker://{registry.name}/app/a:1", f"dir:{tmp_path / 'copied'}"
        status, out = await run(*copy, source, target)
        assert status != 0, out
        copy[-1:] = ["--src-creds", "alice:wonder"]
        status, out = await run(*copy, source, target)
        assert status == 0, out
        for blob, data in image.blobs.items():
            assert (tmp_path / "copied" / blob.hex).read_bytes() == data
        assert node.agent.status()["mirror"]["answers"]["manifest"]["401"] > 0
