"""Whether a daemon gets an image that the policy refuses: the agent says no, and then the daemon itself is asked.

A mirror alone enforces nothing, and no setting shows whether every other way is closed; only trying does. What the
daemon got it didn't have before is removed again.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from p2pdist.admin import AdminError
from p2pdist.cli.checks import Finding, State, agent_status, mirror_url
from p2pdist.config import AgentConfig
from p2pdist.oci import ACCEPT_MANIFESTS, Reference

_CHECK = "way round the agent"
_SECONDS = 30.0  # for questions that a daemon answers from its own disk
_EGRESS = (
    "close the nodes' way to registries for everyone but the agent's user, for example with nftables: "
    "meta skuid != p2pdist tcp dport { 80, 443 } reject (docs/policy.md)"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended: its exit status (None: not in time) and what it said."""

    status: int | None
    output: str

    @property
    def last(self) -> str:
        """Its last line: what its user reads."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:1500] if lines else "nothing"


class Daemon(Protocol):
    """A container daemon through its own command line."""

    @property
    def name(self) -> str:
        """What people call it."""

    def look(self, image: str) -> Sequence[str]:
        """The command that tells whether the daemon has it."""

    def has(self, looked: Ran) -> bool | None:
        """What that command told; None: the daemon does not answer."""

    def pull(self, image: str) -> Sequence[str]:
        """The command that pulls it."""

    def remove(self, image: str) -> Sequence[str]:
        """The command that removes it."""

    def remedy(self, image: Reference, mirror: str) -> str:
        """How to close the ways round."""


class Dockerd:
    """Through `docker`."""

    name = "docker"

    def look(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["docker", "image", "inspect", "--format", "{{.Id}}", image]  # `ls` doesn't know docker.io/... as a name

    def has(self, looked: Ran) -> bool | None:
        """See Daemon."""
        if looked.status == 0:
            return True
        return False if "no such image" in looked.output.lower() else None

    def pull(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["docker", "pull", image]

    def remove(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["docker", "image", "rm", image]

    def remedy(self, image: Reference, mirror: str) -> str:
        """See Daemon."""
        if image.repository.registry == "docker.io":
            return f"dockerd asks Docker Hub itself after any refusal of a mirror, no setting stops it: {_EGRESS}"
        return f"dockerd asks mirrors for Docker Hub only, {image.repository.registry} itself for all else: {_EGRESS}"


@dataclass(frozen=True)
class Containerd:
    """Through `ctr`, which reads the same hosts.toml files as Kubernetes' CRI."""

    hosts_dir: Path
    name: str = "containerd"

    def look(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["ctr", "images", "ls", "--quiet", f"name=={image}"]

    def has(self, looked: Ran) -> bool | None:
        """See Daemon."""
        return bool(looked.output.strip()) if looked.status == 0 else None

    def pull(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["ctr", "images", "pull", "--hosts-dir", str(self.hosts_dir), image]

    def remove(self, image: str) -> Sequence[str]:
        """See Daemon."""
        return ["ctr", "images", "rm", image]

    def remedy(self, image: Reference, mirror: str) -> str:
        """See Daemon."""
        file = self.hosts_dir / "_default" / "hosts.toml"
        return (
            f'put server = "{mirror}" on top of {file}, look for a directory of {image.repository.registry} beside it, '
            f"which takes precedence, and {_EGRESS}"
        )


async def check_bypass(config: AgentConfig, daemon: Daemon, image: Reference, timeout: float) -> Finding:
    """Ask the agent, then `daemon` for `image`. `timeout`: seconds that the daemon may take."""
    try:
        status, _ = await agent_status(config)
    except AdminError as error:
        return Finding(_CHECK, State.SKIPPED, f"no agent to go round: {error}", "start the agent")
    if status["trust"]["enforcement"] != "enforce":
        return Finding(_CHECK, State.SKIPPED, f'the policy refuses nothing with "{status["trust"]["enforcement"]}"')
    mirror = mirror_url(config, status)
    unfit = await _why_unfit(mirror, image)
    if unfit is not None:
        return unfit
    before = await _refused(config)
    try:
        looked = await _run(daemon.look(str(image)), _SECONDS)
        had = daemon.has(looked)
        if had is None:
            detail = f"{daemon.name} does not answer: {looked.last}"
            return Finding(_CHECK, State.FAILED, detail, "start it, or say where it is (see --help); mind the user")
        pulled = await _run(daemon.pull(str(image)), timeout)
        asked = await _refused(config) > before
        came = pulled.status == 0 and not had
        clean = not came or (await _run(daemon.remove(str(image)), _SECONDS)).status == 0
    except FileNotFoundError as error:
        remedy = "run this where the daemon's own command line is"
        return Finding(_CHECK, State.FAILED, f"{error.filename} is not installed here", remedy)
    finding = judge(daemon, image, pulled, asked, mirror)
    if not clean:
        finding = Finding(_CHECK, finding.state, f"{finding.detail}; it could not be removed again", finding.remedy)
    return finding


def judge(daemon: Daemon, image: Reference, pulled: Ran, asked: bool, mirror: str) -> Finding:
    """What became of the pull. `asked`: the agent was asked for it and refused."""
    if pulled.status == 0:
        how = "after the agent had refused it" if asked else "without asking the agent"
        detail = f"{daemon.name} got {image}, which the policy refuses, {how}"
        return Finding(_CHECK, State.FAILED, detail, daemon.remedy(image, mirror))
    if pulled.status is None:
        detail = f"{daemon.name} is still trying to get {image}: it has not taken the agent's refusal for an answer"
        return Finding(_CHECK, State.FAILED, detail, daemon.remedy(image, mirror))
    if not asked:
        detail = f"{daemon.name} did not ask the agent for {image}; it said: {pulled.last}"
        return Finding(_CHECK, State.FAILED, detail, f'make {mirror} its mirror: README, "Use it"')
    return Finding(_CHECK, State.OK, f"{daemon.name} did not get {image}; it said: {pulled.last}")


async def _why_unfit(mirror: str, image: Reference) -> Finding | None:
    """Why nothing follows from asking for this image; None when the agent refuses it by its policy."""
    url = f"{mirror}/v2/{image.repository.name}/manifests/{image.target}"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30.0)) as session,
            session.get(url, params={"ns": image.repository.registry}, headers={"Accept": ACCEPT_MANIFESTS}) as answer,
        ):
            status, text = answer.status, (await answer.content.read(4096)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        detail = f"the mirror does not say whether it refuses {image}: {error or type(error).__name__}"
        return Finding(_CHECK, State.FAILED, detail, "see the other findings")
    match status:
        case 403:
            return None
        case 200:
            remedy = "name one that the policy refuses: an unsigned one, pushed for this purpose"
            return Finding(_CHECK, State.FAILED, f"the policy accepts {image}: nothing follows from it", remedy)
        case _:
            remedy = "name one that exists, in a registry that the agent serves ([[registries]])"
            return Finding(_CHECK, State.FAILED, f"the agent answers {status} for {image}: {text}", remedy)


async def _refused(config: AgentConfig) -> int:
    status, _ = await agent_status(config)
    counts: Mapping[str, Any] = status["trust"]["counts"]
    return int(counts["refused"])


async def _run(argv: Sequence[str], seconds: float) -> Ran:
    def run() -> Ran:
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ran(None, "")
        return Ran(done.returncode, done.stdout.decode(errors="replace"))

    return await asyncio.to_thread(run)
