"""An authority that isn't trusted any more: who has its certificates is shut out at once, by programs that run on."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from exchange_kit import lay_out
from support.swarmlab import Lab, until

from p2pdist.mesh.engine import MeshEngine, MeshSettings
from p2pdist.mesh.network import TcpNetwork
from p2pdist.pki import Authority, Role, TlsCredentials
from p2pdist.swarm.attest import Attestor
from p2pdist.tracker_client import TrackerClient
from tracker import authority as authority_files
from tracker.app import RunningTracker, TrackerSettings
from tracker.authority import AuthorityFiles

HOST = "127.0.0.1"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Change:
    """Two authorities. What an attacker makes with the old key names the new one's cluster, if he likes."""

    def __init__(self) -> None:
        self.old, self.new = Authority.create(time.time()), Authority.create(time.time())
        self.both = self.new.pem + self.old.pem
        self.forger = Authority(self.old.certificate, self.old._key)
        self.forger.cluster = self.new.cluster

    def member(
        self, by: Authority, trusts: bytes | None = None, role: Role = Role.NODE, key: Ed25519PrivateKey | None = None
    ) -> TlsCredentials:
        key, tls = key or Ed25519PrivateKey.generate(), TlsCredentials()
        tls.use(by.issue(key.public_key(), role, {}, time.time(), 3600), key, trusts or self.both)
        return tls


class Line(asyncio.Protocol):
    """A connection to a server that sends everything back."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[bytes] = asyncio.Queue()

    @classmethod
    async def open(cls, port: int, tls: TlsCredentials, stack: ExitStack) -> Line:
        """Closed with the `stack`."""
        loop = asyncio.get_running_loop()
        transport, line = await loop.create_connection(cls, HOST, port, ssl=tls.client, server_hostname=Role.NODE.host)
        stack.callback(transport.abort)
        return line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.came.put_nowait(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.came.put_nowait(b"")

    async def carries(self) -> bool:
        self.transport.write(b"ping")
        async with asyncio.timeout(20):
            return await self.came.get() == b"ping"


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def listening(tls: TlsCredentials) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(Echo, HOST, 0, ssl=tls.server)


async def refused(port: int, tls: TlsCredentials) -> bool:
    with ExitStack() as stack:
        try:
            return not await (await Line.open(port, tls, stack)).carries()
        except OSError:  # of a TLS 1.3 client the certificate is judged after its handshake
            return True


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_lets_go_of_whom_the_old_authority_signed_and_keeps_the_others(loop: str) -> None:
    async def case() -> None:
        change = Change()
        server = change.member(change.new)
        listener = await listening(server)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            old, forged, new = (change.member(by) for by in (change.old, change.forger, change.new))
            with ExitStack() as stack:
                lines = [await Line.open(port, tls, stack) for tls in (old, forged, new)]
                assert all([await line.carries() for line in lines])
                key = Ed25519PrivateKey.generate()
                renewed = change.new.issue(key.public_key(), Role.NODE, {}, time.time(), 3600)
                server.use(renewed, key, change.new.pem)
                assert [await line.carries() for line in lines] == [False, False, True]
            assert [await refused(port, tls) for tls in (old, forged, new)] == [True, True, False]
            server.trust(change.both)  # and back
            assert not await refused(port, old)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(case())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_lets_go_of_servers_that_the_old_authority_signed(loop: str) -> None:
    async def case() -> None:
        change = Change()
        client = change.member(change.new)
        servers = [change.member(by) for by in (change.old, change.forger, change.new)]
        listeners = [await listening(tls) for tls in servers]
        ports = [listener.sockets[0].getsockname()[1] for listener in listeners]
        with ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.close)
            lines = [await Line.open(port, client, stack) for port in ports]
            assert all([await line.carries() for line in lines])
            client.trust(change.new.pem)
            assert [await line.carries() for line in lines] == [False, False, True]
            assert [await refused(port, client) for port in ports] == [True, True, False]
        for listener in listeners:
            await listener.wait_closed()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(case())


def test_a_handshake_that_is_under_way_when_the_authority_goes_brings_nothing() -> None:
    change = Change()
    server, old = change.member(change.new), change.member(change.old)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        server.server.wrap_bio(to_server, to_client, server_side=True),
        old.client.wrap_bio(to_client, to_server, server_hostname=Role.NODE.host),
    )
    for side in (sides[1], sides[0]):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    server.trust(change.new.pem)
    sides[1].do_handshake()
    sides[0].do_handshake()  # by the context that it began with
    assert server.identify(sides[0]) is None
    with pytest.raises(ssl.SSLError, match="not trusted"):
        sides[0].read(1)
    with pytest.raises(ssl.SSLError, match="not trusted"):
        sides[0].write(b"x")


def test_a_name_in_the_new_cluster_that_the_old_key_signed_is_nobodys() -> None:
    """Also where TLS had let it in before."""
    change = Change()
    assert change.forger.cluster == change.new.cluster
    server = change.member(change.new)
    forged = change.member(change.forger)
    assert forged.certificate is not None
    assert forged.certificate.issuer == change.old.certificate.subject
    assert server._read(_der(forged)) is not None  # as long as both are trusted
    server.trust(change.new.pem)
    assert server._read(_der(forged)) is None


def _der(tls: TlsCredentials) -> bytes:
    assert tls.certificate is not None
    return tls.certificate.public_bytes(Encoding.DER)


async def test_a_node_drops_its_links_with_nodes_of_the_old_authority_and_makes_no_new_ones(tmp_path: Path) -> None:
    change = Change()
    known: dict[str, TlsCredentials] = {}

    def make(name: str, attestor: Attestor, rng: random.Random) -> MeshEngine:
        by = change.old if name == "old" else change.new
        tls = known[name] = change.member(by, key=attestor._key)
        network = TcpNetwork(tls.server, tls.client)
        return MeshEngine(attestor.node, network, MeshSettings(host=HOST), rng, identify=tls.node)

    async with Lab(tmp_path, make, lambda name: HOST) as lab:
        here, old, fresh = [await lab.node(name) for name in ("here", "old", "fresh")]
        for other in (old, fresh):
            other.engine.link([here.info])
        await until(lambda: len(here.engine.links()) == 2)
        known["here"].trust(change.new.pem)
        await until(lambda: [peer.node for peer in here.engine.links()] == [fresh.attestor.node])
        old.engine.link([here.info])
        here.engine.link([old.info])
        await until(lambda: not here.engine._near._dialling and not old.engine._near._dialling)
        assert [peer.node for peer in here.engine.links()] == [fresh.attestor.node]


async def healthy(http: aiohttp.ClientSession, tracker: RunningTracker, tls: TlsCredentials) -> bool:
    try:
        async with http.get(f"{tracker.url}/healthz", ssl=tls.client, server_hostname=Role.TRACKER.host) as answer:
            return answer.status == 200
    except (OSError, aiohttp.ClientError):
        return False


async def test_a_tracker_that_runs_on_shuts_out_nodes_of_an_authority_whose_certificate_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_files, "LOOK", 0.0)
    change, directory = Change(), tmp_path / "authority"
    lay_out(directory, change.new, change.old)
    settings = TrackerSettings(port=0, authority_directory=str(directory), session_timeout=6, insecure=False)
    async with RunningTracker(settings) as tracker, asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as http:
        keys = [Ed25519PrivateKey.generate() for _ in range(3)]
        members = [
            change.member(by, key=key) for by, key in zip((change.old, change.forger, change.new), keys, strict=True)
        ]
        clients = [
            TrackerClient(
                [tracker.url], key, "n", HOST, 1, {}, on_message=lambda _: None, on_state=lambda _: None, tls=tls.client
            )
            for key, tls in zip(keys, members, strict=True)
        ]
        running = [tasks.create_task(client.run()) for client in clients]
        await until(lambda: all(client.connected for client in clients))
        lay_out(directory, change.new)
        await until(lambda: [client.connected for client in clients] == [False, False, True])

        assert [await healthy(http, tracker, tls) for tls in members] == [False, False, True]
        admin = change.member(change.old, role=Role.ADMIN)
        assert not await healthy(http, tracker, admin)
        assert [client.connected for client in clients] == [False, False, True]  # nor did they come again
        lay_out(directory, change.new, change.old)
        await until(lambda: all(client.connected for client in clients))
        for task in running:
            task.cancel()


async def test_an_agents_session_with_a_tracker_of_the_old_authority_ends(tmp_path: Path) -> None:
    change, directory = Change(), tmp_path / "authority"
    lay_out(directory, change.old, change.new)
    settings = TrackerSettings(port=0, authority_directory=str(directory), session_timeout=6, insecure=False)
    async with RunningTracker(settings) as tracker, asyncio.TaskGroup() as tasks:
        key, said = Ed25519PrivateKey.generate(), []
        tls = change.member(change.new, key=key)
        client = TrackerClient(
            [tracker.url], key, "n", HOST, 1, {}, on_message=lambda _: None, on_state=said.append, tls=tls.client
        )
        running = tasks.create_task(client.run())
        await until(lambda: client.connected)
        tls.trust(change.new.pem)
        await until(lambda: not client.connected)
        async with aiohttp.ClientSession() as http:
            assert not await healthy(http, tracker, tls)
        assert not client.connected
        running.cancel()


def test_files_that_cannot_be_used_change_nothing_and_neither_does_another_key(tmp_path: Path) -> None:
    change = Change()
    lay_out(tmp_path, change.old)
    files = AuthorityFiles("", str(tmp_path), change.old)
    now = 0.0

    def look() -> Authority | None:
        nonlocal now
        now += authority_files.LOOK
        return files.look(now)

    assert look() is None
    (tmp_path / "trusted.crt").write_text("half a certif")
    assert look() is None
    (tmp_path / "trusted.crt").write_bytes(change.new.pem)
    found = look()
    assert found is not None and found.bundle == change.old.pem + change.new.pem
    assert look() is None
    lay_out(tmp_path, change.new, change.old)  # needs a restart: tokens and keys follow from it
    assert look() is None
    (tmp_path / "tls.key").unlink()
    assert look() is None
    lay_out(tmp_path, change.old)
    found = look()
    assert found is not None and found.bundle == change.old.pem
