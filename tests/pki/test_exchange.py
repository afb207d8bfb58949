"""Another authority takes the place of the old one while the cluster works: docs/security.md, "Another authority"."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from exchange_kit import lay_out

from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError, InputError, TrackerError
from p2pdist.pki import Authority, JoinToken, Role, TlsCredentials, certificates_of, cluster_of
from tracker import authority as authority_files
from tracker.app import RunningTracker, TrackerSettings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Member:
    """A node's membership, over restarts of its agent."""

    def __init__(self, directory: Path, port: int, token: str) -> None:
        self.directory, self.port, self.token = directory, port, token
        self.key = Ed25519PrivateKey.generate()
        self.start()

    def start(self) -> bool:
        """A new process; whether it is a member at once."""
        token = JoinToken.parse(self.token)
        url = f"https://127.0.0.1:{self.port}"
        self.enrolment = Enrolment([url], self.key, self.directory, token, TlsCredentials())
        return self.enrolment.load()

    async def join(self) -> None:
        await self._once(self.enrolment._enrol)

    async def renew(self) -> None:
        await self._once(self.enrolment._renew)

    async def _once(self, attempt) -> None:
        (place,) = await self.enrolment._places.ranked()
        async with asyncio.timeout(60):
            await attempt(place)

    async def comes_to_trust(self, *authorities: Authority) -> None:
        """It renews until it does: the tracker looks at its files now and then."""
        async with asyncio.timeout(60):
            while self.trusts != [authority.cluster for authority in authorities]:
                await self.renew()

    @property
    def tls(self) -> TlsCredentials:
        return self.enrolment.credentials

    @property
    def node(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def trusts(self) -> list[str]:
        return [cluster_of(one) for one in certificates_of((self.directory / "ca.crt").read_bytes())]


async def know_each_other(one: Member, other: Member) -> tuple[bytes | None, bytes | None]:
    """Both speak TLS with each other: whom the server meets, and whom the client."""
    met: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set_result(one.tls.node(writer.get_extra_info("ssl_object")))
        writer.write(b"!")
        writer.close()

    async with await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=one.tls.server) as server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=other.tls.client, server_hostname=Role.NODE.host
        )
        try:
            theirs = other.tls.node(writer.get_extra_info("ssl_object"))
            if await asyncio.wait_for(reader.read(1), 30) != b"!":
                raise ConnectionError("the server took it for nobody")
            return met.result(), theirs
        finally:
            writer.close()


async def test_a_cluster_changes_its_authority_in_three_steps_and_no_node_joins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_files, "LOOK", 0.0)
    old, new = Authority.create(time.time()), Authority.create(time.time())
    directory, port = tmp_path / "authority", free_port()
    settings = TrackerSettings(
        port=port, authority_directory=str(directory), data_directory=str(tmp_path / "tracker"), insecure=False
    )
    lay_out(directory, old)
    async with RunningTracker(settings) as tracker:
        token = await tracker.new_token(3600)
        quick, late = Member(tmp_path / "quick", port, token), Member(tmp_path / "late", port, token)
        for member in (quick, late):
            await member.join()
            assert member.trusts == [old.cluster]

        lay_out(directory, old, new)  # 1: the new one is trusted, too, within a certificate's life
        for member in (quick, late):
            await member.comes_to_trust(old, new)
        assert quick.start() and late.start()  # restarts of agents, with the token that they joined with

    lay_out(directory, new, old)  # 2: it signs; one node has renewed, another hasn't yet
    async with RunningTracker(settings) as tracker:
        await quick.renew()
        assert quick.trusts == [new.cluster, old.cluster]
        assert quick.tls.cluster == new.cluster and late.tls.cluster == old.cluster
        assert await know_each_other(quick, late) == (late.node, quick.node)
        assert await know_each_other(late, quick) == (quick.node, late.node)
        straggler = Member(tmp_path / "straggler", port, token)
        with pytest.raises(InputError):
            await straggler.join()  # tokens of the old one are void
        straggler.token = await tracker.new_token(3600)
        straggler.start()
        await straggler.join()
        assert await know_each_other(straggler, late) == (late.node, straggler.node)
        assert quick.start()

        lay_out(directory, new)  # 3: the old one is trusted no longer
        await quick.comes_to_trust(new)
        for one, other in ((quick, late), (late, quick)):  # who missed it is nobody
            with pytest.raises((OSError, TimeoutError)):
                await know_each_other(one, other)
        with pytest.raises((OSError, aiohttp.ClientError, TrackerError)):
            await late.renew()
        assert quick.start()
        assert await know_each_other(quick, straggler) == (straggler.node, quick.node)


async def test_an_authority_that_does_not_follow_from_the_old_one_is_not_taken(tmp_path: Path) -> None:
    member = Member(tmp_path, 1, str(JoinToken(b"f" * 32, b"s" * 32)))
    old, new, foreign = (Authority.create(time.time()) for _ in range(3))
    assert member.enrolment._next_authority(new.pem + old.pem, old.pem) == new.pem + old.pem
    with pytest.raises(InputError, match="doesn't follow"):
        member.enrolment._next_authority(foreign.pem, old.pem + new.pem)


def test_a_file_of_trusted_authorities_that_holds_none_is_an_error(tmp_path: Path) -> None:
    lay_out(tmp_path, Authority.create(time.time()))
    (tmp_path / "trusted.crt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"trusted\.crt"):
        Authority.load(tmp_path)
