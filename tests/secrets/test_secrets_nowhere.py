"""Every secret that an agent and a tracker ever hold, looked for in all that they write, say and show.

Both run as programs, at their most talkative; a pull works, and then everything fails that can.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.fleet import until
from support.proxy import FakeProxy
from support.registry import BearerAuth, Cut, FakeRegistry, Image, Status, noise

from p2pdist.admin import AdminClient
from p2pdist.config import load_agent
from p2pdist.enrol import Enrolment
from p2pdist.errors import ConfigError
from p2pdist.pki import JoinToken, Role
from p2pdist.upstream.challenge import parse_challenges

MIB = 1 << 20


def marked(what: str) -> str:
    return f"{what}-{secrets.token_hex(12)}"


@dataclass
class Secrets:
    """What must be nowhere, and the files whose purpose is to hold one."""

    held: dict[str, bytes] = field(default_factory=dict)

    def add(self, what: str, *forms: str | bytes) -> None:
        for number, form in enumerate(forms):
            self.held[f"{what} ({number})"] = form.encode() if isinstance(form, str) else form

    def found(self, where: str, text: bytes) -> list[str]:
        return [f"{what} in {where}" for what, secret in self.held.items() if secret in text]

    def add_login(self, what: str, user: str, password: str) -> None:
        self.add(what, password, base64.b64encode(f"{user}:{password}".encode()))


class Program:
    """One of our commands, with what it wrote."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.process, self.log = name, process, log

    def shown(self) -> bytes:
        """Its log, and what `ps` shows of it."""
        pid = self.process.pid
        with suppress(OSError):
            return self.log.read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        return self.log.read_bytes()


@asynccontextmanager
async def program(directory: Path, name: str, command: str, *argv: str) -> AsyncIterator[Program]:
    log = directory / f"{name}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("P2PDIST_")}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", command, *argv, stdout=out, stderr=out, env=environment
        )
    try:
        yield Program(name, process, log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), 60.0)


AGENT = "from p2pdist.cli import main; main()"
TRACKER = "from tracker.__main__ import main; main()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def finish(directory: Path, name: str, command: str, *argv: str) -> tuple[int, bytes]:
    """A command that ends by itself."""
    async with program(directory, name, command, *argv) as run:
        status = await asyncio.wait_for(run.process.wait(), 90.0)
        return status, run.log.read_bytes()


@dataclass
class Site:
    directory: Path
    registry: FakeRegistry
    secrets: Secrets
    tracker: Program
    agent: Program
    url: str
    tracker_url: str
    http: aiohttp.ClientSession
    bodies: list[bytes] = field(default_factory=list)  # every answer that anybody got

    def path(self, kind: str, target: object, repository: str = "app/a", ns: str | None = None) -> str:
        return f"{self.url}/v2/{repository}/{kind}/{target}?ns={(ns or self.registry.name).replace(':', '%3A')}"

    async def get(self, url: str, **options: Any) -> int:
        try:
            async with self.http.get(url, **options) as answer:
                body = await answer.read()
                self.bodies.append(body + repr(list(answer.headers.items())).encode())
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def raw(self, port: int, data: bytes, tls: ssl.SSLContext | None = None) -> None:
        """Bytes to a port; what comes back is kept."""
        try:
            name = {"ssl": tls, "server_hostname": Role.TRACKER.host} if tls is not None else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **name)
            writer.write(data)
            with suppress(TimeoutError):
                self.bodies.append(await asyncio.wait_for(reader.read(65536), 2.0))
            writer.close()
        except (OSError, ssl.SSLError):
            return


CONFIG = """
[node]
name = "one"
data_dir = "{data}"
shutdown_seconds = 1
[mirror]
port = {mirror}
decide_deadline_seconds = 2
[peer]
host = "127.0.0.1"
port = {peer}
advertise_host = "127.0.0.1"
[tracker]
urls = ["https://127.0.0.1:{tracker}"]
[cluster]
token_file = "{token}"
[upstream]
credentials_file = "{credentials}"
rights_seconds = 0.1
[log]
level = "debug"
format = "json"
[[registries]]
name = "{registry}"
url = "{url}"
stall_timeout_seconds = 1
proxy = "{proxy}"
[[registries]]
name = "gone.test:1"
url = "http://127.0.0.1:1"
proxy = "{gone_proxy}"
[[registries]]
name = "shut.test:1"
url = "https://shut.test:1"
proxy = "{shut_proxy}"
"""


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[tuple[Site, Image]]:
    held = Secrets()
    password, identity = marked("password"), marked("identity")
    held.add_login("the registry's password", "alice", password)
    held.add("the identity token", identity)
    ports = {name: free_port() for name in ("mirror", "peer", "tracker")}
    auth = BearerAuth(
        users={"alice": password}, private=frozenset({"app/a"}), identity_tokens=frozenset({identity}), expires_in=10
    )
    door = marked("proxy")
    held.add_login("the proxy's password", "fleet", door)
    wrong = marked("proxy")
    held.add_login("a wrong password for the proxy", "fleet", wrong)
    async with (
        FakeRegistry(auth=auth, storage=True, linked=True) as registry,
        FakeProxy(login=f"fleet:{door}") as proxy,
        aiohttp.ClientSession() as http,
    ):
        image = registry.add_image("app/a", "1", [noise(MIB, 1), noise(3000, 2)])
        registry.add_image("open/b", "1", [noise(3000, 3)])
        rules = directory / "tracker.toml"
        rules.write_text(
            f'host = "127.0.0.1"\nport = {ports["tracker"]}\ndata_directory = "{directory / "tracker"}"\n'
            'log_level = "debug"\n'
        )
        credentials = directory / "credentials.json"
        credentials.write_text(
            json.dumps(
                {
                    "auths": {
                        registry.name: {"username": "alice", "password": password},
                        "gone.test:1": {"identitytoken": identity},
                    }
                }
            )
        )
        async with program(directory, "tracker", TRACKER, "--config", str(rules)) as tracker:
            await until(lambda: b"tracker listens" in tracker.log.read_bytes(), 90.0)
            status, out = await finish(directory, "token", TRACKER, "token", "create", "--config", str(rules))
            assert status == 0, out
            text = next(word for word in out.decode().split() if word.startswith("p2pdist1."))
            (directory / "token.log").unlink()
            token = JoinToken.parse(text)
            held.add("the join token", text, text.split(".")[2], token.secret, token.secret.hex())
            (directory / "join.token").write_text(text)
            config = directory / "agent.toml"
            config.write_text(
                CONFIG.format(
                    data=directory / "agent",
                    token=directory / "join.token",
                    credentials=credentials,
                    registry=registry.name,
                    url=registry.url,
                    proxy=proxy.url_with(f"fleet:{door}"),
                    shut_proxy=proxy.url_with(f"fleet:{wrong}"),
                    gone_proxy=f"http://fleet:{wrong}@127.0.0.1:1",
                    **ports,
                )
            )
            async with program(directory, "agent", AGENT, "agent", "--config", str(config)) as agent:
                await until(lambda: b"ready" in agent.log.read_bytes(), 90.0)
                yield (
                    Site(
                        directory, registry, held, tracker, agent, f"http://127.0.0.1:{ports['mirror']}",
                        f"https://127.0.0.1:{ports['tracker']}", http,
                    ),
                    image,
                )  # fmt: skip
                assert {one.target for one in proxy.asked} >= {registry.name, "shut.test:1"}


async def pull(site: Site, image: Image, **options: Any) -> None:
    """Again where it took longer than the mirror waits: on a machine that is busy with other things."""
    for kind, target in (("manifests", "1"), *(("blobs", str(blob)) for blob in image.blobs)):
        async with asyncio.timeout(60):
            while await site.get(site.path(kind, target), **options) != 200:
                await asyncio.sleep(0.2)


async def everything_fails(site: Site, image: Image) -> None:
    """Each way in which a secret is at hand when something goes wrong."""
    registry, held = site.registry, site.secrets
    client, wrong = marked("client"), marked("wrong")
    held.add("a client's token", client)
    held.add_login("a client's password", "mallory", wrong)
    login = {"Authorization": basic("mallory", wrong)}
    for headers in ({"Authorization": f"Bearer {client}"}, login, {"Authorization": f"Bearer {client}é"}):
        for kind, target in (
            ("manifests", "1"),
            ("blobs", image.layers[0]),
            ("referrers", image.digest),
            ("tags", "list"),
        ):
            await site.get(site.path(kind, target), headers=headers)
    # A client's own token that works, and stops working.
    async with site.http.get(site.path("manifests", "1"), headers={"Authorization": "Bearer none"}) as answer:
        (challenge,) = parse_challenges([answer.headers["WWW-Authenticate"]])
    alice = {"Authorization": basic("alice", registry._door.auth.users["alice"])}
    query = {"scope": challenge.parameters["scope"]}
    async with site.http.get(challenge.parameters["realm"], params=query, headers=alice) as answer:
        own = {"Authorization": "Bearer " + (await answer.json())["token"]}
    assert await site.get(site.path("manifests", "1"), headers=own) == 200
    for fault in (
        Status(403),
        Status(500),
        Cut(after=100),
        Status(307, headers={"Location": f"http://u:{client}@127.0.0.1:1/?X-Amz-Signature={client}"}),
    ):
        fresh = registry.add_image(
            "app/a", "2", [noise(MIB, secrets.randbelow(1 << 30)), noise(2000, secrets.randbelow(1 << 30))]
        )
        registry.fail(fault, path="/storage/" if not (isinstance(fault, Status) and fault.status == 307) else "/blobs/")
        assert await site.get(site.path("manifests", "2")) == 200
        patience = aiohttp.ClientTimeout(4)
        await asyncio.gather(*(site.get(site.path("blobs", blob), timeout=patience) for blob in fresh.blobs))
        registry.heal()
    # A token service that breaks, or sends something else; a registry that is gone; a redirect to nowhere.
    for fault in (Status(500), Status(200, body=b'{"token": "a b"}'), Status(401)):
        registry.fail(fault, path="/token")
        registry.revoke_tokens()
        await asyncio.sleep(0.2)
        await site.get(site.path("manifests", "1"))
        await site.get(site.path("blobs", image.layers[0]), headers=own)
        registry.heal()
    async with asyncio.timeout(60):
        registry.revoke_tokens()
        while len(registry._door.given) < 3:  # whatever the answers: it is asked with a new token
            await asyncio.sleep(0.2)
            await site.get(site.path("manifests", "1"))
    for name in ("gone.test:1", "shut.test:1"):
        await site.get(site.path("manifests", "1", ns=name))
    await site.get(site.path("manifests", "1", ns=f"user:{client}@{registry.name}"))
    await site.get(f"{site.url}/v2/app/a/manifests/1?ns={registry.name}&sig={client}")
    # Requests that are none, with a secret in them.
    mirror, tracker = (int(url.rsplit(":", 1)[1]) for url in (site.url, site.tracker_url))
    header = f"Authorization: Bearer {client}"
    for data in (
        f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\nbroken\r\n\r\n",
        f"{header}\r\n\r\n",
        f"GET /{client} HTTP/9\r\n\r\n",
        f"PUT /v2/a/blobs/uploads/?digest={client} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n\r\n",
    ):
        await site.raw(mirror, data.encode())
        await site.raw(tracker, data.encode(), insecure())
    for body in (
        {"request": "x", "secret": client},
        {"request": "x", "secret": client.encode().hex()},
        {"secret": {client: 1}},
    ):
        for path in ("/v1/enrol", "/v1/renew"):
            async with site.http.post(site.tracker_url + path, json=body, ssl=insecure()) as answer:
                site.bodies.append(await answer.read())
    await site.get(f"{site.tracker_url}/v1/status?token={client}", ssl=insecure())


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def insecure() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def files(directory: Path) -> Iterable[tuple[Path, bytes]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


async def test_no_secret_is_in_logs_answers_status_metrics_files_or_arguments(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, image):
        await pull(here, image)
        await everything_fails(here, image)
        held = here.secrets
        data = tmp_path / "agent"
        for name in ("node.key", "tls/tls.key"):
            raw = (data / name).read_bytes()
            held.add(f"the node's {name}", raw, *([raw.hex()] if len(raw) == 32 else raw.split(b"\n")[1:2]))
        authority = (tmp_path / "tracker" / "authority" / "tls.key").read_bytes()
        held.add("the authority's key", authority.split(b"\n")[1])
        held.add("a token for the registry", *here.registry._door._tokens, *here.registry._door.given)
        held.add("a signed link", *(one.query for one in here.registry.storage_log))
        assert here.registry.storage_log

        async with AdminClient(data / "admin.sock") as admin:
            shown = {"status": json.dumps(await admin.status()).encode(), "metrics": (await admin.metrics()).encode()}
        member = ssl.create_default_context(cafile=str(data / "tls" / "ca.crt"))
        member.load_cert_chain(data / "tls" / "tls.crt", data / "tls" / "tls.key")
        for page in ("/v1/status", "/metrics", "/healthz"):
            async with here.http.get(here.tracker_url + page, ssl=member, server_hostname=Role.TRACKER.host) as answer:
                assert answer.status == 200
                shown[f"the tracker's {page}"] = await answer.read()
        for number, body in enumerate(here.bodies):
            shown[f"answer {number}"] = body
        for one in (here.agent, here.tracker):
            shown[f"log and arguments of the {one.name}"] = one.shown()
        assert len(here.agent.log.read_bytes().splitlines()) > 20

        found = [hit for where, text in shown.items() for hit in held.found(where, text)]
        assert found == []

        homes = {"agent/node.key": "the node's", "agent/tls/tls.key": "the node's"}
        homes |= {f"tracker/authority/{name}": "the authority's key" for name in ("tls.key", "authority.pem")}
        for path, text in [*files(data), *files(tmp_path / "tracker")]:
            home = homes.get(str(path.relative_to(tmp_path)))
            hits = held.found(str(path), text)
            assert [hit for hit in hits if home is None or not hit.startswith(home)] == []
        private = [data / "node.key", data / "rights.json", *(data / "tls").iterdir()]
        private += [path for path, _ in [*files(data / "blobs"), *files(tmp_path / "tracker")]]
        assert len(private) > 8
        assert [str(path) for path in private if path.stat().st_mode & 0o077] == []
        assert data.stat().st_mode & 0o077 == 0 and (data / "admin.sock").stat().st_mode & 0o077 == 0


def test_a_configuration_with_a_secret_in_the_wrong_place_is_refused_without_it(tmp_path: Path) -> None:
    secret = marked("secret")
    config = tmp_path / "agent.toml"
    for text in (
        f'[[registries]]\nname = "r.test"\nurl = "https://user:{secret}@r.test"\n',
        f'[tracker]\nurls = ["https://user:{secret}@t.test"]\n',
        f'[[registries]]\nname = "r.test"\nproxy = "socks5://user:{secret}@p.test:1080"\n',
        f'[[registries]]\nname = "r.test"\nproxy = ["http://user:{secret}@p.test:3128"]\n',
        f'[cluster]\ntoken = "{secret}"\n[tracker]\nurls = ["https://127.0.0.1:1"]\n',
        f'[cluster]\ntoken = {{ a = "{secret}" }}\n',
    ):
        config.write_text(f'[node]\ndata_dir = "{tmp_path / "data"}"\n{text}')
        with pytest.raises(ConfigError) as refused:
            Enrolment.open(load_agent(config, {}), Ed25519PrivateKey.generate())
        assert secret not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load_agent(None, {"P2PDIST_CLUSTER_TOKEN": f"{secret}\0"})
    assert secret not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        load_agent(None, {"HTTPS_PROXY": f"ftp://user:{secret}@p.test"})
    assert secret not in str(refused.value)
