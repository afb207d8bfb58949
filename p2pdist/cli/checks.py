"""What can be told of this node without touching a daemon. Each check says what it found and what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp

from p2pdist.admin import AdminClient, AdminError
from p2pdist.cli.units import in_bytes
from p2pdist.config import AgentConfig, RegistryConfig
from p2pdist.errors import ConfigError, UpstreamError
from p2pdist.trust import load_policy
from p2pdist.upstream import Registry

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)  # the mirror is on this machine
_START = "start it (p2pdist up, or its service), or name its configuration with --config; ask as the agent's user"
_LITTLE_ROOM = 1024**3  # bytes


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not checked"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy`: what to do about it, where something is to be done."""

    check: str
    state: State
    detail: str
    remedy: str = ""


async def check_node(config: AgentConfig) -> list[Finding]:
    """Every check of the node itself, in the order in which they depend on each other."""
    try:
        status, agent = await agent_status(config)
    except AdminError as error:
        status, agent = None, Finding("agent", State.FAILED, str(error).partition(";")[0], _START)
    return [
        await asyncio.to_thread(check_data, config, status),
        agent,
        await check_mirror(config, status),
        *await check_registries(config, status),
        check_tracker(status),
        await asyncio.to_thread(check_policy, config, status),
    ]


async def agent_status(config: AgentConfig) -> tuple[dict[str, Any], Finding]:
    """What the running agent says of itself; AdminError."""
    async with AdminClient(config.admin_socket) as client:
        status = await client.status()
    detail = f"version {status.get('version')}, up for {float(status.get('uptime_seconds', 0)):.0f} s"
    return status, Finding("agent", State.OK, detail)


def check_data(config: AgentConfig, status: Mapping[str, Any] | None) -> Finding:
    """The data directory can be written to, and the store has the room that it may take."""
    directory = config.node.data_dir
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"p2pdist doctor")
        free = shutil.disk_usage(directory).free
    except OSError as error:
        remedy = f"make {directory}, writable for the user that the agent runs as, or set node.data_dir"
        if status is None and isinstance(error, FileNotFoundError):
            remedy = "the agent makes it at its first start"
        return Finding("data directory", State.FAILED, f"{directory}: {error.strerror}", remedy)
    held = int(status["store"]["bytes"]) if status is not None else 0
    bound = config.node.max_store_bytes
    detail = f"{directory}: {in_bytes(free)} free, {in_bytes(held)} stored"
    if free < _LITTLE_ROOM:
        return Finding("data directory", State.WARNING, detail, "free some room, or lower node.max_store_bytes")
    if bound is not None and free + held < bound:
        remedy = f"the store may grow to {in_bytes(bound)}: lower node.max_store_bytes"
        return Finding("data directory", State.WARNING, detail, remedy)
    return Finding("data directory", State.OK, detail)


def mirror_url(config: AgentConfig, status: Mapping[str, Any] | None) -> str:
    """Where this machine's daemons reach the mirror."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.mirror.host, config.mirror.host)
    port = config.mirror.port if status is None else int(status["mirror"]["port"])
    scheme = "http" if config.mirror.tls_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


async def check_mirror(config: AgentConfig, status: Mapping[str, Any] | None) -> Finding:
    """The mirror answers as one, and it is ours."""
    url = mirror_url(config, status)
    if config.mirror.client_ca is not None:
        return Finding("mirror", State.SKIPPED, f"{url} lets in only clients with a certificate")
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(f"{url}/v2/", allow_redirects=False, ssl=not url.startswith("https:")) as answer,
        ):
            ours = answer.headers.get("Server") == "p2pdist"
            if answer.status == 200 and ours:
                return Finding("mirror", State.OK, f"{url} answers")
            if answer.status == 403 and ours and config.mirror.password_file is not None:
                return Finding("mirror", State.OK, f"{url} answers, and wants a password")
            detail = f"{url} answers {answer.status}" + ("" if ours else " and is no p2pdist")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        remedy = "start the agent; the daemons go to the registries themselves meanwhile"
        number = None if isinstance(error, aiohttp.ClientSSLError) else getattr(error, "errno", None)
        why = os.strerror(number) if number else str(error) or type(error).__name__
        return Finding("mirror", State.FAILED, f"{url} does not answer: {why}", remedy)
    return Finding("mirror", State.FAILED, detail, "another program has this port: set mirror.port to a free one")


async def check_registries(config: AgentConfig, status: Mapping[str, Any] | None) -> list[Finding]:
    """Each registry is reached, from here and with this environment's proxies, and the agent goes the same way."""
    from p2pdist.agent import make_upstreams  # here: loads the whole agent, which status need not

    known = {one["name"]: one["proxy"] for one in status["registries"]} if status is not None else {}
    try:
        async with make_upstreams(config) as upstreams, asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(_check_registry(config, upstreams.registry(one.name), one, known.get(one.name)))
                for one in config.registries
            ]
    except UpstreamError as error:  # a CA file
        return [Finding("registries", State.FAILED, str(error), "correct ca_file in [[registries]]")]
    return [task.result() for task in asked]


async def _check_registry(
    config: AgentConfig, registry: Registry, wanted: RegistryConfig, agents_proxy: str | None
) -> Finding:
    check = f"registry {wanted.name}"
    proxy = config.proxy_of(wanted)
    by = f" through the proxy {proxy}" if proxy else ""
    if agents_proxy is not None and agents_proxy != proxy:
        detail = f"the running agent goes {_way(agents_proxy)}; from here it would be {_way(proxy)}"
        remedy = "give both the same HTTPS_PROXY, HTTP_PROXY and NO_PROXY, or set proxy in [[registries]]; restart it"
        return Finding(check, State.FAILED, detail, remedy)
    try:
        answer = await registry.reach()
    except UpstreamError as error:
        if proxy:
            remedy = 'correct proxy in [[registries]], or HTTPS_PROXY; if it needs none: NO_PROXY, or proxy = "none"'
        else:
            remedy = "is there a firewall, or a proxy to go through? then set HTTPS_PROXY, or proxy in [[registries]]"
        return Finding(check, State.FAILED, str(error), remedy)
    if answer in (200, 401, 403):
        return Finding(check, State.OK, f"{wanted.endpoint} answers{by}")
    remedy = f"is that its address, and the {'proxy' if proxy else 'registry'} well?"
    return Finding(check, State.WARNING, f"{wanted.endpoint} answers {answer} to /v2/{by}", remedy)


def _way(proxy: str) -> str:
    return f"through the proxy {proxy}" if proxy else "without a proxy"


def check_tracker(status: Mapping[str, Any] | None) -> Finding:
    """There is a session with a tracker."""
    if status is None:
        return Finding("tracker", State.SKIPPED, "only a running agent knows")
    tracker = status["tracker"]
    urls = ", ".join(tracker["urls"])
    if not urls:
        remedy = "set tracker.urls, so that nodes find each other"
        return Finding("tracker", State.WARNING, "none is configured: all comes from the registries", remedy)
    if not tracker["connected"]:
        remedy = "start the tracker, or correct tracker.urls; is there a firewall between?"
        return Finding("tracker", State.FAILED, f"no session with {urls}", remedy)
    return Finding("tracker", State.OK, f"session with {urls}, which knows {tracker['nodes']} nodes")


def check_policy(config: AgentConfig, status: Mapping[str, Any] | None) -> Finding:
    """The configured policy can be used, and it is the one in force."""
    wanted, file = config.trust.enforcement, config.trust.policy_file
    running = None if status is None else status["trust"]
    if running is not None and running["enforcement"] != wanted:
        detail = f'the configuration says "{wanted}", the running agent "{running["enforcement"]}"'
        return Finding("policy", State.FAILED, detail, "restart the agent")
    if wanted == "off" or file is None:
        return Finding("policy", State.OK, 'enforcement = "off": no image is checked')
    try:
        loaded = load_policy(file)
    except ConfigError as error:
        remedy = "correct it: the running agent keeps the policy before it" if running else "correct it"
        return Finding("policy", State.FAILED, str(error), remedy)
    detail = f"{file}, generation {loaded.generation[:12]}, {wanted}"
    if running is not None and running["policy"]["problem"]:
        return Finding("policy", State.FAILED, f"{detail}: {running['policy']['problem']}", "correct the policy file")
    if running is not None and running["policy"]["generation"] != loaded.generation:
        return Finding("policy", State.FAILED, f"{detail}: the running agent has another one", "restart the agent")
    if wanted == "warn":
        passed = "" if running is None else f"; {running['counts']['would_refuse']} would have been refused"
        return Finding("policy", State.WARNING, f"{detail}: everything passes{passed}", 'set enforcement = "enforce"')
    if loaded.policy.default.open:
        remedy = 'make its default [{"type": "reject"}]'
        return Finding("policy", State.WARNING, f"{detail}: what no scope names passes unchecked", remedy)
    return Finding("policy", State.OK, detail)
