"""Who knocks at the ports of a running agent and its tracker: strangers, wrong certificates, floods, noise."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rogue import LINK, Rogue, has_nothing, holder
from support.fleet import Fleet, Node, until
from support.registry import FakeRegistry, noise

from p2pdist.pki import Authority, Role, TlsCredentials
from p2pdist.protocol import limits
from p2pdist.protocol import messages as wire

MIB = 1 << 20


def authority_of(fleet: Fleet) -> Authority:
    found = Authority.load(fleet.directory / "tracker" / "authority")
    assert found is not None
    return found


async def dial(node: Node, context: ssl.SSLContext | None, name: str | None = Role.NODE.host) -> Any:
    options = {} if context is None else {"ssl": context, "server_hostname": name}
    return await asyncio.open_connection(node.config.peer.host, node.agent._engine.port, **options)


async def asked(node: Node, context: ssl.SSLContext | None, request: str) -> bytes:
    """The first bytes of the answer; empty: the connection was closed without one."""
    try:
        reader, writer = await dial(node, context)
    except (OSError, ssl.SSLError):
        return b""
    try:
        writer.write(request.encode())
        await writer.drain()
        return bytes(await asyncio.wait_for(reader.read(4096), 10.0))
    except (OSError, ssl.SSLError):
        return b""
    finally:
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


@pytest.mark.parametrize("who", ["expired", "foreign", "plain", "nobody", "tracker", "admin", "banned"])
async def test_the_peer_port_gives_nothing_to(tmp_path: Path, who: str) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1)])
        node = await fleet.start()
        await fleet.pull(node, image)
        ours = authority_of(fleet)
        blob = f"GET /v1/blobs/{image.layers[0]} HTTP/1.1\r\nHost: peer\r\nRange: bytes=0-1023\r\n\r\n"
        good = holder(ours, ours)
        member = await asked(node, good.client, LINK)
        assert b" 101 " in member.split(b"\r\n")[0]  # a member is let in: the refusals below mean something
        tls: TlsCredentials | None = {
            "expired": lambda: holder(ours, ours, age=7200),
            "foreign": lambda: holder(Authority.create(time.time()), ours),
            "tracker": lambda: holder(ours, ours, Role.TRACKER),
            "admin": lambda: holder(ours, ours, Role.ADMIN),
        }.get(who, lambda: good)()
        context = tls.client
        if who == "nobody":
            stranger = TlsCredentials()
            stranger.trust(ours.pem)
            context = stranger.client
        if who == "banned":
            key = good.certificate.public_key().public_bytes_raw()
            fleet.tracker.leading.dispatch(fleet.tracker.cluster.ban(time.time(), key, time.time() + 600, "test"))
            await until(lambda: node.agent._attestor.banned(key, time.time()))
        for request in (LINK, blob):
            answer = await asked(node, None if who == "plain" else context, request)
            assert b" 101 " not in answer and b" 206 " not in answer
            assert answer == b"" or b" 403 " in answer or b" 404 " in answer


async def test_curl_with_a_nodes_certificate_reads_a_range_from_the_peer_port(tmp_path: Path) -> None:
    """For debugging: plain HTTP Range semantics under the TLS, with the files that every node has."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1), noise(MIB, 2)])
        node, other = await fleet.start(), await fleet.start()
        await asyncio.gather(fleet.pull(node, image), fleet.pull(other, image))
        served = [layer for layer in image.layers if str(layer) in node.agent._engine._exchanges]
        if not served:
            pytest.fail("no layer is open for peers")
        tls = other.config.node.data_dir / "tls"
        port = node.agent._engine.port
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--cacert", str(tls / "ca.crt"), "--cert", str(tls / "tls.crt"), "--key",
            str(tls / "tls.key"), "--resolve", f"{Role.NODE.host}:{port}:{node.config.peer.host}", "-r", "100-299",
            f"https://{Role.NODE.host}:{port}/v1/blobs/{served[0]}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await curl.communicate()
        assert (curl.returncode, out) == (0, image.blobs[served[0]][100:300])


async def test_a_flood_of_connections_leaves_the_agent_and_the_tracker_at_work(tmp_path: Path) -> None:
    """Strangers that connect and say nothing, members that connect and say nothing, and links by the dozen."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(2 * MIB, 1)])
        nodes = [await fleet.start() for _ in range(2)]
        member = holder(authority_of(fleet), authority_of(fleet))
        silent = [await dial(nodes[0], None) for _ in range(100)]
        silent += [await asyncio.open_connection("127.0.0.1", fleet.tracker.port) for _ in range(100)]
        silent += [await dial(nodes[0], member.client) for _ in range(40)]
        for _ in range(20):
            await asked(nodes[0], member.client, LINK)
        async with asyncio.timeout(60):
            await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in silent), return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
async def test_noise_on_the_peer_port_from_a_member_ends_that_connection_only(tmp_path: Path, seed: int) -> None:
    """Truncated, oversize and malformed heads and frames, byte by byte."""
    rng = random.Random(seed)
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1)])
        node = await fleet.start()
        member = holder(authority_of(fleet), authority_of(fleet))
        for _ in range(40):
            valid = bytearray(LINK.encode() + rng.randbytes(rng.choice([0, 3, 200, 5000])))
            for _ in range(rng.randrange(4)):
                valid[rng.randrange(len(valid))] = rng.randrange(256)
            cut = valid[: rng.randrange(1, len(valid) + 1)] + b"x" * rng.choice([0, 0, limits.MAX_HTTP_HEAD * 2])
            _, writer = await dial(node, member.client)
            with suppress(OSError, ssl.SSLError):
                writer.write(bytes(cut))
                await writer.drain()
            writer.close()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
        assert not node.task.done()
        await fleet.pull(node, image)


async def test_a_member_that_floods_the_tracker_is_dropped_and_the_others_pull(tmp_path: Path) -> None:
    """Joins and HAVEs by the thousand, then frames that are none."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(2 * MIB, 1)])
        nodes = [await fleet.start() for _ in range(2)]
        async with Rogue(fleet, tmp_path / "rogue", {}, has_nothing, "127.0.0.99") as rogue:
            for number in range(3000):
                name = f"sha256:{number:064x}"
                rogue.client.send(wire.Join(name, "r", [wire.Want(name, 10**12)]))
                rogue.client.send(wire.Holds([name] * 10))
                rogue.client.send(wire.Got(name, number, os.urandom(32), os.urandom(64)))
                if number % 100 == 0:
                    await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
            before = fleet.tracker.visits.door.traffic.malformed
            async with aiohttp.ClientSession() as http:
                socket = await http.ws_connect(
                    fleet.tracker.url + "/v1/session", ssl=rogue.tls.client, server_hostname=Role.TRACKER.host
                )
                await socket.receive()
                await socket.send_bytes(os.urandom(1000))
                assert (await asyncio.wait_for(socket.receive(), 10)).type is not aiohttp.WSMsgType.BINARY
                await socket.close()
            assert fleet.tracker.visits.door.traffic.malformed == before + 1


async def test_one_accuser_cannot_get_an_honest_node_banned(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1)])
        node = await fleet.start()
        victim = bytes.fromhex(node.node)
        async with Rogue(fleet, tmp_path / "rogue", {}, has_nothing, "127.0.0.99") as rogue:
            for index in range(200):
                rogue.client.send(wire.Accuse(victim, str(image.layers[0]), index))
            await asyncio.sleep(0.5)
        assert fleet.tracker.cluster.banned(time.time(), victim) is None
        await fleet.pull(node, image)


@pytest.mark.parametrize(
    "ns",
    [
        "169.254.169.254",
        "localhost:22",
        "[::1]:2375",
        "registry.example@169.254.169.254",
        "x/../..",
        "a b",
        "%0d%0aX:1",
    ],
)
async def test_a_client_cannot_send_the_agent_to_other_hosts_by_ns(tmp_path: Path, ns: str) -> None:
    """SSRF: only the registries of the configuration are ever asked, whatever a request names."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        registry.add_image("app/a", "1", [noise(1000, 1)])
        node = await fleet.start()
        before = len(registry.requests(r"."))
        async with fleet.client.get(f"{node.url}/v2/app/a/manifests/1", params={"ns": ns}) as answer:
            assert answer.status in (400, 403, 404)
        assert len(registry.requests(r".")) == before


async def test_no_secret_is_in_status_or_metrics(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        node = await fleet.start()
        shown = repr(node.agent.status()).encode()
        key = (node.config.node.data_dir / "node.key").read_bytes()
        for secret in (fleet.token.split(".")[2].encode(), key, key.hex().encode()):
            assert secret not in shown
        assert b"'insecure': False" in shown and b"'member': True" in shown


async def test_a_member_that_gives_anothers_address_as_its_own_is_linked_by_nobody(tmp_path: Path) -> None:
    """Else it could make others take an honest node's traffic, and blame, for its own."""
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(MIB, 1)])
        victim, other = await fleet.start(), await fleet.start()
        blobs = {str(layer): image.blobs[layer] for layer in image.layers}
        where = (victim.config.peer.host, victim.agent._engine.port)
        async with Rogue(fleet, tmp_path / "rogue", blobs, has_nothing, "127.0.0.99", says=where) as rogue:
            await asyncio.gather(fleet.pull(victim, image), fleet.pull(other, image))
            assert rogue.asked == 0
            for node in (victim, other):
                assert rogue.node not in {peer.node for peer in node.agent._engine.links()}
