"""Real processes under attack: a quarter of the nodes hostile in a cold rollout, and noise on every port of them.

Each test leaves the cluster as it found it: every process alive, and an image that nobody has seen arrives everywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from attacks import CHANGES, CUTS, FRAMES, MESSAGES, SMUGGLED, changed, framed, linked, packed, sent
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rogue import LINK, Request, Rogue, has_nothing, holder
from support.fleet import until
from support.images import Image
from support.registry import noise
from town import Town, wait

from p2pdist.mesh.wire import Have, Open
from p2pdist.pki import Authority, Role, TlsCredentials
from p2pdist.protocol import limits
from p2pdist.protocol import messages as wire
from p2pdist.protocol.attest import hello_bytes
from p2pdist.protocol.chunks import chunk_range
from p2pdist.swarm.attest import from_header

MIB = 1 << 20
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
pytestmark = pytest.mark.timeout(600)  # the cluster is started by whichever test comes first
IN_VAIN = 4.0  # seconds until agents complain of chunks that are promised to them and don't come, and what follows
RATE = 2.0 * MIB  # bytes a second of the upstream: a rollout takes long enough for stalls and bans to matter


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    town = Town(tmp_path_factory.mktemp("town"), 9)
    yield town
    town.close()


def wanted(image: Image, registry: str) -> wire.Join:
    wants = [wire.Want(str(digest), len(data)) for digest, data in image.blobs.items() if len(data) > MIB]
    return wire.Join(str(image.digest), registry, wants)


async def false_statement(rogue: Rogue, request: Request) -> None:
    """Wrong bytes of what it was leased, and its own signature that they are right: the same ones to everybody."""
    if (request.digest, request.index) not in rogue.leased:
        await has_nothing(rogue, request)
        return
    data = lie(request.digest, request.end - request.start)
    statement = rogue.attest(request, hashlib.sha256(data).digest())
    request.writer.write(request.head(len(rogue.blobs[request.digest]), statement) + data)


def leases_and_lies(rogue: Rogue, message: Any) -> None:
    """It holds leases, and says after a while that it has read what it was to read."""
    if isinstance(message, wire.Lease) and not message.alone:
        rogue._spawn(read(rogue, message))


async def read(rogue: Rogue, lease: wire.Lease) -> None:
    await asyncio.sleep(0.15)  # as long as an honest read takes
    size, chunk_size = len(rogue.blobs[lease.digest]), rogue.cut(lease.digest)
    for index in range(lease.first, lease.first + lease.count):
        start, end = chunk_range(index, size, chunk_size)
        signed = rogue.attestor.sign(
            lease.digest, chunk_size, index, hashlib.sha256(lie(lease.digest, end - start)).digest()
        )
        assert signed is not None
        rogue.leased.add((lease.digest, index))
        rogue.client.send(wire.Half(lease.digest, index))
        rogue.client.send(wire.Got(lease.digest, index, signed.sha256, signed.signature))


def lie(digest: str, length: int) -> bytes:
    """The same false bytes for everybody."""
    return (hashlib.sha256(digest.encode()).digest() * (length // 32 + 1))[:length]


async def wrong_bytes(rogue: Rogue, request: Request) -> None:
    """A true statement, and other bytes."""
    data = rogue.blobs[request.digest]
    statement = rogue.attest(request, hashlib.sha256(data[request.start : request.end]).digest())
    request.writer.write(request.head(len(data), statement) + os.urandom(request.end - request.start))


async def drips(rogue: Rogue, request: Request) -> None:
    """Right bytes, slowly, for ever; and its leases never come to anything."""
    data = rogue.blobs[request.digest]
    statement = rogue.attest(request, hashlib.sha256(data[request.start : request.end]).digest())
    request.writer.write(request.head(len(data), statement))
    for offset in range(request.start, request.end):
        request.writer.write(data[offset : offset + 1])
        await asyncio.sleep(0.2)


async def test_a_quarter_of_twelve_hostile_costs_seconds_and_less_than_one_more_copy(town: Town) -> None:
    registry = town.upstream.registry
    layers = (5 * MIB, 4 * MIB, 3 * MIB)
    size = sum(layers)
    images = [registry.add_image("app/a", tag, [noise(n, 10 * k + n) for n in layers]) for k, tag in enumerate("123")]
    town.upstream.rate = RATE
    before = max(await asyncio.to_thread(town.pull, images[0], "1"))
    blobs = {str(digest): data for digest, data in images[1].blobs.items() if len(data) > MIB}
    kinds = [(false_statement, leases_and_lies), (wrong_bytes, None), (drips, None)]
    async with AsyncExitStack() as stack:
        rogues = []
        for number, (answer, hear) in enumerate(kinds):
            rogue = Rogue(
                town, town.directory / f"rogue-{number}", blobs, answer, f"127.{town.net}.2.{number + 1}",
                holds=False, hear=hear,
            )  # fmt: skip
            rogues.append(await stack.enter_async_context(rogue))
            rogue.client.send(wanted(images[1], registry.name))
        liar = rogues[0]
        hostile = max(await asyncio.to_thread(town.pull, images[1], "2"))
        assert all(rogue.asked for rogue in rogues), "nobody fell for one: the test is worth nothing"
        await until(lambda: any(isinstance(message, wire.Rejected) for message in liar.heard))
        said = await asyncio.to_thread(town.tell, "bans", "list")
    sent = sum(registry.bytes_sent(digest) for digest in images[1].layers)
    after = max(await asyncio.to_thread(town.pull, images[2], "3"))
    clean = max(before, after)  # what a busy machine makes of it changes within seconds
    print(
        f"clean {before:.2f} and {after:.2f} s, hostile {hostile:.2f} s, {sent / size:.2f} copies from upstream; "
        f"leases of the rogues: {[rogue.leases for rogue in rogues]}"
    )
    assert hostile <= 2.0 * clean + IN_VAIN
    assert sent <= 2.02 * size
    assert liar.node.hex() in said and "it signed that chunk" in said
    for agent in town.agents:
        assert agent.node.hex() not in said, "an honest node was banned"
    for agent in town.agents:
        assert agent.alive


async def test_a_clique_that_accuses_an_honest_node_of_true_statements_loses_its_voice(town: Town) -> None:
    """They have its signatures, true ones, and show the tracker the blob itself; and they accuse without proof."""
    town.upstream.rate = None
    victim = town.agents[0]
    layer, image = fresh(town, 2 * MIB)
    await asyncio.to_thread(town.pull, image, layer, [victim])
    digest, data = next((str(d), b) for d, b in image.blobs.items() if len(b) > MIB)

    def shows(rogue: Rogue, message: Any) -> None:
        if isinstance(message, wire.Show):
            piece = data[message.offset : message.offset + message.length]
            rogue.client.send(wire.Shown(message.digest, message.offset, piece))

    async with AsyncExitStack() as stack:
        for number in range(3):
            where = town.directory / f"clique-{number}"
            rogue = Rogue(town, where, {}, has_nothing, f"127.{town.net}.3.{number + 1}", holds=False, hear=shows)
            await stack.enter_async_context(rogue)
            ask = f"GET /v1/blobs/{digest} HTTP/1.1\r\nHost: peer\r\nRange: bytes=0-65535\r\n\r\n"
            answer = await asyncio.to_thread(
                sent, (victim.host, 5051), rogue.tls.client, Role.NODE.host, ask.encode()
            )  # fmt: skip
            headers = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            signed = next(line.partition(": ")[2] for line in headers if line.lower().startswith("p2pdist-attestation"))
            statement = from_header(signed)
            assert statement.signer.node == victim.node
            for _ in range(5):
                rogue.client.send(wire.Convict(digest, len(data), 64 * 1024, 0, statement))
                rogue.client.send(wire.Accuse(victim.node, digest, 0))
            await until(lambda rogue=rogue: any(isinstance(message, wire.Show) for message in rogue.heard))
        await asyncio.to_thread(town.still_works)
        assert victim.node.hex() not in await asyncio.to_thread(town.tell, "bans", "list")


@pytest.mark.parametrize("who", ["expired", "foreign", "admin", "tracker", "banned", "nobody"])
def test_the_tracker_takes_no_session_of(town: Town, who: str) -> None:
    ours, key = town.authority, Ed25519PrivateKey.generate()
    tls = {
        "expired": lambda: holder(ours, ours, age=7200, key=key),
        "foreign": lambda: holder(Authority.create(time.time()), ours, key=key),
        "admin": lambda: holder(ours, ours, Role.ADMIN, key=key),
        "tracker": lambda: holder(ours, ours, Role.TRACKER, key=key),
    }.get(who, lambda: holder(ours, ours, key=key))()
    if who == "nobody":
        tls = TlsCredentials()
        tls.trust(ours.pem)
    if who == "banned":
        assert session(town, tls, key, []) == "welcome"  # a member is let in: the refusals mean something
        town.tell("bans", "add", key.public_key().public_bytes_raw().hex())
        wait(lambda: session(town, tls, key, []) == "refused", "the ban")
    assert session(town, tls, key, []) == "refused"


def test_noise_on_the_peer_port_and_on_control_links_ends_those_connections_only(town: Town) -> None:
    agent, tls = town.agents[0], holder(town.authority, town.authority)
    address = (agent.host, 5051)
    before = agent.rss()

    @FEW
    @given(st.lists(FRAMES, max_size=30), CHANGES, st.booleans())
    def links(frames: list[Any], changes: list[tuple[int, int]], spoilt: bool) -> None:
        said = b"".join(framed(packed(frame)) for frame in frames)
        linked(address, tls.client, Role.NODE.host, changed(said, changes) if spoilt else said)

    @FEW
    @given(
        st.binary(max_size=3000), CHANGES, st.one_of(st.none(), st.integers(0, 1 << 16)), st.sampled_from([0, 20_000])
    )
    def heads(tail: bytes, changes: list[tuple[int, int]], cut: int | None, more: int) -> None:
        valid = LINK.encode() + b"GET /v1/blobs/sha256:aa HTTP/1.1\r\nRange: bytes=0-9\r\n\r\n" + tail
        sent(address, tls.client, Role.NODE.host, changed(valid, changes, cut) + b"x" * more)

    links()
    heads()
    for noise_bytes in SMUGGLED:
        sent(address, tls.client, Role.NODE.host, noise_bytes)
        sent(address, None, None, noise_bytes)
    town.still_works()
    assert agent.rss() - before < 200 * MIB


def test_a_flood_of_swarms_and_haves_on_a_control_link_is_bounded(town: Town) -> None:
    agent, tls = town.agents[0], holder(town.authority, town.authority)
    opens = b"".join(
        framed(packed(Open(number, f"sha256:{number:064x}", 1 << 40, 16 * MIB, b"\xff" * 8192)))
        for number in range(3000)
    )
    haves = framed(packed(Have(1, 65535, 65535, 65535))) * 100_000
    before = agent.rss()
    linked((agent.host, 5051), tls.client, Role.NODE.host, opens + haves)
    town.still_works()
    assert agent.rss() - before < 200 * MIB


def test_noise_in_a_trackers_session_ends_that_session_only(town: Town) -> None:
    key = Ed25519PrivateKey.generate()
    tls = holder(town.authority, town.authority, key=key)

    @FEW
    @given(st.lists(st.lists(MESSAGES, max_size=8), max_size=6), CHANGES, st.booleans())
    def sessions(frames: list[list[Any]], changes: list[tuple[int, int]], spoilt: bool) -> None:
        bodies = [packed(frame) for frame in frames]
        if spoilt:
            bodies = [changed(body, changes) for body in bodies]
        assert session(town, tls, key, bodies) in ("welcome", "refused")

    sessions()
    for body in (b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, bytes(9 * MIB)):
        session(town, tls, key, [body])
    town.still_works()
    assert town.tracker_program.rss() < 500 * MIB


def test_noise_and_smuggling_on_the_mirror_port_reach_no_upstream(town: Town) -> None:
    agent = town.agents[0]
    registry = town.upstream.registry

    @FEW
    @given(CHANGES, CUTS, st.binary(max_size=300))
    def requests(changes: list[tuple[int, int]], cut: int | None, tail: bytes) -> None:
        valid = (
            b"GET /v2/app/a/manifests/none?ns=registry.example HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\n\r\n" + tail
        )
        sent((agent.host, 5050), None, None, changed(valid, changes, cut))

    before = len(registry.log)
    for attack in SMUGGLED:
        answer = sent((agent.host, 5050), None, None, attack)
        assert b"X-Injected" not in answer and b"root:" not in answer
        for status in (b" 201 ", b" 202 ", b" 206 ", b" 301 ", b" 302 ", b" 307 "):
            assert status not in answer.partition(b"\r\n")[0], attack[:80]
    requests()
    asked = {one.path for one in registry.log[before:]}
    assert all(path.startswith("/v2/app/a/manifests/1") or path in ("/v2/", "/token") for path in asked), asked
    town.still_works()


def session(town: Town, tls: TlsCredentials, key: Ed25519PrivateKey, frames: list[bytes]) -> str:
    """Greet the tracker, send the frames; "welcome" or "refused"."""

    async def talk() -> str:
        async with aiohttp.ClientSession() as http:
            socket = await http.ws_connect(
                town.tracker.url + "/v1/session", ssl=tls.client, server_hostname=Role.TRACKER.host
            )
            connection = socket._conn
            assert connection is not None
            try:
                return await converse(socket)
            finally:
                connection.transport.abort()  # no goodbye: it would outlive this loop
                await asyncio.sleep(0.01)

    async def converse(socket: aiohttp.ClientWebSocketResponse) -> str:
        (challenge,) = wire.decode_from_tracker((await socket.receive()).data)
        public = key.public_key().public_bytes_raw()
        proof = key.sign(hello_bytes(challenge.nonce))
        await socket.send_bytes(wire.encode([wire.Hello(limits.VERSION, public, proof, "x", "127.0.0.9", 9)]))
        first = await socket.receive()
        if first.type is not aiohttp.WSMsgType.BINARY:
            return "refused"
        answer = wire.decode_from_tracker(first.data)[0]
        for frame in frames:
            await socket.send_bytes(frame)
        return "welcome" if isinstance(answer, wire.Welcome) else "refused"

    async def bounded() -> str:
        try:
            return await asyncio.wait_for(talk(), 30)
        except (aiohttp.ClientError, OSError):
            return "refused"

    return asyncio.run(bounded())


def fresh(town: Town, size: int) -> tuple[str, Image]:
    """An image that nobody has seen: its tag, and what it is."""
    town.made += 1
    tag = f"1-{town.made}"
    return tag, town.upstream.registry.add_image("app/a", tag, [noise(size, 1000 + town.made)])
