"""The demo's cluster on loopback: a registry, a tracker and N agents, each a process of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from p2pdist.admin import AdminClient, AdminError
from p2pdist.cli.demo.child import Child, ChildDied
from p2pdist.cli.demo.image import DemoImage
from p2pdist.cli.demo.registry import MANIFEST_FILE
from p2pdist.errors import OperationError

REGISTRY = "registry.demo"  # what the agents know the demo's registry by; never resolved
_LOOPBACK = "127.0.0.1"
_MIRROR_PORT, _PEER_PORT = 5050, 5051
_TRACKER = 254  # its address in the demo's network; nodes have 2 to 101
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Node:
    """One agent, and the way to ask it."""

    name: str
    host: str
    mirror: str  # http://host:port
    child: Child
    admin: AdminClient


class Cluster:
    """A started cluster. `nodes` are ready: linked to the tracker and serving their mirrors."""

    def __init__(self, registry: str, children: list[Child], nodes: list[Node], http: aiohttp.ClientSession) -> None:
        self._registry = registry
        self._children = children
        self._http = http
        self.nodes = nodes

    async def sent_by_registry(self) -> dict[str, int]:
        """Bytes that the registry sent of each digest, by its own count."""
        try:
            async with self._http.get(f"{self._registry}/sent") as answer:
                counts: dict[str, int] = await answer.json()
                return counts
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OperationError(f"the demo's registry does not say what it sent: {error}") from error

    async def stop(self) -> list[str]:
        """Stop everything as an operator would, the registry last; what did not end well, in words."""
        wrong = []
        for group in ([node.child for node in self.nodes], self._children):
            alive = [child for child in group if child.running]
            statuses = await asyncio.gather(*(child.stop(_STOP_SECONDS) for child in alive))
            wrong += [
                f"{child.name} ended with status {status} when asked to stop"
                for child, status in zip(alive, statuses, strict=True)
                if status != 0
            ]
        return wrong


@asynccontextmanager
async def started_cluster(directory: Path, image: DemoImage, count: int) -> AsyncIterator[Cluster]:
    """A cluster of `count` nodes with everything it writes under `directory`.

    No process outlives the block, however it is left. Raises OperationError when a part does not start.
    """
    async with AsyncExitStack() as stack:

        async def start(name: str, *arguments: str, read_stdout: bool = False) -> Child:
            child = await Child.start(name, arguments, directory / f"{name}.log", read_stdout=read_stdout)
            stack.push_async_callback(child.gone)
            children.append(child)
            return child

        children: list[Child] = []
        network = stack.enter_context(own_network())
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)))
        (image.directory / MANIFEST_FILE).write_bytes(image.manifest)
        registry = await start("registry", "-m", "p2pdist.cli.demo.registry", str(image.directory), read_stdout=True)
        upstream = f"http://{_LOOPBACK}:{await registry.first_line(_START_SECONDS)}"

        # An address of its own: on 127.0.0.1 another program may get the port before the tracker has it, and answer.
        tracker_host = f"{network}.{_TRACKER}"
        tracker_port = free_port(tracker_host, 0)  # not 7070: a tracker that starts meanwhile may take that everywhere
        tracker_url = f"https://{tracker_host}:{tracker_port}"
        tracker_config = directory / "tracker.toml"
        tracker_data = str(directory / "tracker-data")
        tracker_config.write_text(
            toml({"host": tracker_host, "port": tracker_port, "data_directory": tracker_data, "insecure": False})
        )
        maker = await start(
            "token", "-m", "tracker", "token", "create", "--config", str(tracker_config), read_stdout=True
        )
        token = await maker.first_line(_START_SECONDS)
        children.remove(maker)  # it has ended, and is not to be stopped
        # Only asked for its health; the agents check its certificate.
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        tracker = await start("tracker", "-m", "tracker", "--config", str(tracker_config))

        async def tracker_answers() -> bool:
            try:
                async with http.get(f"{tracker_url}/healthz", ssl=anyone) as answer:
                    return answer.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        await _until(tracker_answers, tracker)
        nodes = []
        for index in range(count):
            name, host = f"node-{index + 1}", f"{network}.{index + 2}"
            mirror_port = free_port(host, _MIRROR_PORT)
            config = directory / f"{name}.toml"
            admin = directory / f"{name}.sock"
            config.write_text(
                toml(
                    {
                        "node": {"name": name, "data_dir": str(directory / name), "max_store_bytes": 0},
                        "mirror": {"host": host, "port": mirror_port},
                        "peer": {"host": host, "port": free_port(host, _PEER_PORT), "advertise_host": host},
                        "tracker": {"urls": [tracker_url]},
                        "cluster": {"insecure": False, "token": token},
                        "registries": [{"name": REGISTRY, "url": upstream}],
                        "admin": {"socket": str(admin)},
                        "log": {"format": "text"},
                    }
                )
            )
            child = await start(name, "-m", "p2pdist.cli", "agent", "--config", str(config))
            client = await stack.enter_async_context(AdminClient(admin))
            nodes.append(Node(name, host, f"http://{host}:{mirror_port}", child, client))
        for node in nodes:
            await _until(partial(_is_linked, node), node.child, tracker)
        yield Cluster(upstream, children, nodes, http)


async def transfer_of(node: Node) -> dict[str, int]:
    """Bytes that the node has taken `bytes_from_upstream` and `bytes_from_peers`. Raises OperationError."""
    transfer = (await node.admin.status()).get("transfer", {})
    try:
        return {key: int(transfer[key]) for key in ("bytes_from_upstream", "bytes_from_peers")}
    except (KeyError, TypeError) as error:
        raise OperationError(f"{node.name}: its status has no {error}") from error


@contextmanager
def own_network() -> Iterator[str]:
    """`127.0.0` for the first demo on this machine, `127.0.1` for another one at the same time, and so on.

    Linux answers on the whole of 127.0.0.0/8 without any set-up. A name in the abstract socket namespace, which goes
    with its process, says that a network is taken.
    """
    for number in range(255):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0p2pdist-demo-{number}")
            except OSError:
                continue
            yield f"127.0.{number}"
            return
    raise OperationError("255 demos are running on this machine; wait for one to end")


def free_port(host: str, preferred: int) -> int:
    """`preferred` if nobody listens on it at `host`, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # what is left of an earlier demo is no obstacle
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OperationError(f"no port can be had on {host}; the demo needs Linux, where all of 127.0.0.0/8 is loopback")


def toml(document: Mapping[str, Any]) -> str:
    """`document` (values, tables, arrays of tables) as TOML; JSON spells strings, numbers and lists the same way."""
    plain, tables = [], []
    for name, value in document.items():
        if isinstance(value, Mapping):
            tables.append(f"[{name}]\n{toml(value)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += [f"[[{name}]]\n{toml(item)}" for item in value]
        else:
            plain.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain) + "\n".join(tables)


async def _is_linked(node: Node) -> bool:
    try:
        return bool((await node.admin.status()).get("tracker", {}).get("connected"))
    except AdminError:
        return False


async def _until(condition: Callable[[], Awaitable[bool]], child: Child, *others: Child) -> None:
    """Real processes start in real time: look again until it is so, or one that should bring it about has ended."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await condition():
                for needed in (child, *others):
                    needed.check()
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise ChildDied(f"{child.name} was not ready after {_START_SECONDS:g} s: {child.last_words()}") from None
