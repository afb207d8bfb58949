"""What other nodes can do to a node's peer port, over real TLS; and how long a connection outlives its certificate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import until
from support.swarmlab import Lab, Node

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.mesh.knobs import Knobs
from p2pdist.mesh.lifetime import Lifetimes
from p2pdist.mesh.network import TcpNetwork
from p2pdist.pki import Authority, Role, TlsCredentials
from p2pdist.swarm.attest import Attestor

CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(40 * CHUNK)
HOST = "127.0.0.1"


class Members:
    """A cluster's authority, and certificates that last `seconds`."""

    def __init__(self, seconds: float = 3600.0) -> None:
        self.authority = Authority.create(time.time())
        self.seconds = seconds

    def renew(self, tls: TlsCredentials, key: Ed25519PrivateKey, seconds: float | None = None) -> None:
        seconds = self.seconds if seconds is None else seconds
        certificate = self.authority.issue(key.public_key(), Role.NODE, {}, time.time(), seconds)
        tls.use(certificate, key, self.authority.pem)


@asynccontextmanager
async def lab(
    directory: Path, members: Members, knobs: Knobs | None = None, **settings: int
) -> AsyncIterator[tuple[Lab, dict[bytes, TlsCredentials]]]:
    known: dict[bytes, TlsCredentials] = {}

    def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
        tls = known[attestor.node] = TlsCredentials()
        members.renew(tls, attestor._key)
        network = TcpNetwork(tls.server, tls.client)
        mesh = MeshSettings(host=HOST, **settings)
        return MeshEngine(attestor.node, network, mesh, rng, knobs, identify=tls.node)

    async with Lab(directory, make, lambda name: HOST) as one:
        yield one, known


async def dial(node: Node, members: Members, key: Ed25519PrivateKey | None = None) -> Any:
    tls = TlsCredentials()
    members.renew(tls, key or Ed25519PrivateKey.generate())
    return await asyncio.open_connection(HOST, node.engine.port, ssl=tls.client, server_hostname=Role.NODE.host)


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the other side closed."""
    got = b""
    with suppress(OSError):
        while piece := await asyncio.wait_for(reader.read(65536), 20.0):
            got += piece
    return got


def blob(data: bytes, start: int, end: int) -> bytes:
    from p2pdist.oci import Digest

    return f"GET /v1/blobs/{Digest.of(data)} HTTP/1.1\r\nHost: p\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode()


async def test_one_node_has_its_share_of_connections_and_all_have_theirs(tmp_path: Path) -> None:
    members = Members()
    async with lab(tmp_path, members, max_per_node=3, max_connections=5) as (one, _):
        node = await one.node("here")
        greedy = Ed25519PrivateKey.generate()
        held = [await dial(node, members, greedy) for _ in range(3)]
        await until(lambda: len(node.engine._uploads.connections) == 3)
        held += [await dial(node, members, greedy) for _ in range(3)]  # TLS lets them in; the node doesn't
        for reader, _writer in held[3:]:
            assert await closed(reader) == b""
        assert node.engine.stats.refused_connections == 3
        held += [await dial(node, members) for _ in range(3)]
        await until(lambda: node.engine.stats.refused_connections == 4)
        assert len(node.engine._uploads.connections) == 5
        for _, writer in held:
            writer.close()


async def test_who_asks_nothing_and_who_asks_too_much_at_once_is_closed_and_counted(tmp_path: Path) -> None:
    members = Members()
    async with lab(tmp_path, members, replace(Knobs(), first_request=0.3)) as (one, _):
        node = await one.node("here")
        silent, unfinished, endless, noise = [await dial(node, members) for _ in range(4)]
        unfinished[1].write(b"GET /v1/blobs/")
        endless[1].write(b"GET / HTTP/1.1\r\nX: " + b"a" * 9000)
        noise[1].write(b"\x00\x01\r\n\r\n")
        assert b" 431 " in await closed(endless[0])
        assert b" 400 " in await closed(noise[0])
        for reader, _writer in (silent, unfinished):
            assert await closed(reader) == b""
        stats = node.engine.stats
        assert (stats.bad_requests, stats.slow_connections) == (2, 2)
        for _, writer in (silent, unfinished, endless, noise):
            writer.close()


async def test_who_does_not_take_what_it_asked_for_loses_its_place(tmp_path: Path) -> None:
    members = Members()
    data = random.Random(2).randbytes(16 << 20)
    async with lab(tmp_path, members, replace(Knobs(), untaken=0.5)) as (one, _):
        node = await one.node("here")
        await one.seed(node, data, 16 << 20)
        slow = await dial(node, members)
        slow[1].write(blob(data, 0, 16 << 20))
        await until(lambda: node.engine.stats.slow_connections == 1)
        quick = await dial(node, members)  # the slot is free again
        quick[1].write(blob(data, 0, 100))
        head = await quick[0].readuntil(b"\r\n\r\n")
        assert b" 206 " in head and await quick[0].readexactly(100) == data[:100]
        for _, writer in (slow, quick):
            writer.close()


async def test_a_link_ends_with_its_neighbours_certificate(tmp_path: Path) -> None:
    members = Members(4.0)
    async with lab(tmp_path, members, replace(Knobs(), grace=0.5)) as (one, known):
        here, there = await one.node("here"), await one.node("there")
        members.renew(known[here.attestor.node], here.attestor._key, 3600.0)
        here.engine.link([there.info])
        await until(lambda: len(here.engine.links()) == 1)
        reader, writer = await dial(here, members)  # an idle data connection of somebody else, for four seconds, too
        ends = known[there.attestor.node].certificate.not_valid_after_utc.timestamp()
        await until(lambda: not here.engine.links())
        assert time.time() >= ends
        assert here.engine.stats.ended_certificates == 1
        assert await closed(reader) == b""
        writer.close()


async def test_a_transfer_goes_on_over_the_end_of_a_certificate_that_was_renewed(tmp_path: Path) -> None:
    members = Members(4.0)
    async with lab(tmp_path, members, replace(Knobs(), grace=1.0)) as (one, known):
        here, there = await one.node("here"), await one.node("there")
        source = await one.fetch(there, DATA, CHUNK)
        exchange = await one.fetch(here, DATA, CHUNK)
        here.engine.link([there.info])
        await until(lambda: len(here.engine.links()) == 1)
        for node in (here, there):
            members.renew(known[node.attestor.node], node.attestor._key, 3600.0)
        for index in range(40):  # as if there read it from upstream, slowly
            one.give(there, DATA, index)
            await asyncio.sleep(0.17)
        await until(lambda: exchange.have == source.full)
        assert [peer.node for peer in here.engine.links()] == [there.attestor.node]
        for node in (here, there):
            stats = node.engine.stats
            assert (stats.ended_certificates, stats.refused, stats.stalls) == (0, 0, 0)
        assert here.host.dead == [] and there.host.dead == []


def test_the_newest_certificate_of_a_node_counts_and_few_nodes_are_remembered() -> None:
    lifetimes = Lifetimes()
    assert not lifetimes.over(b"unknown", 1e12)
    for number in range(10_000):
        lifetimes.seen(number.to_bytes(32, "big"), None)
    assert len(lifetimes._ends) == 4096
    assert not lifetimes.over((9_999).to_bytes(32, "big"), 1e12)  # no TLS: nothing ends


async def test_there_are_as_many_links_as_may_be_and_no_more(tmp_path: Path) -> None:
    members = Members()
    async with lab(tmp_path, members, max_links=2) as (one, _):
        hub, *others = [await one.node(name) for name in ("hub", "a", "b", "c")]
        for other in others[:2]:
            other.engine.link([hub.info])
        await until(lambda: len(hub.engine.links()) == 2)
        others[2].engine.link([hub.info])
        await until(lambda: not others[2].engine._near._dialling)
        assert len(hub.engine.links()) == 2 and others[2].engine.links() == []


async def test_there_are_as_many_chunks_in_flight_as_may_be_and_none_in_the_end(tmp_path: Path) -> None:
    members = Members()
    most = 0
    async with lab(tmp_path, members) as (one, _):
        here, *others = [await one.node(name) for name in ("here", "a", "b", "c", "d", "e", "f", "g", "h")]
        for other in others:
            await one.seed(other, DATA, CHUNK)
        exchange = await one.fetch(here, DATA, CHUNK)

        def watch(*_: object) -> None:
            nonlocal most
            most = max(most, here.engine.stats.requests_out)

        exchange.listeners.append(watch)
        here.engine.link([other.info for other in others])
        await until(lambda: exchange.have == exchange.full)
        assert 1 < most <= Knobs().requests
        await until(lambda: here.engine.stats.requests_out == 0)
