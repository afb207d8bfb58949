"""`p2pdist verify`: what the policy says of one image, and why. Asks the registry itself; no agent need run."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import aiohttp
import typer

from p2pdist.cli.lines import Line, show
from p2pdist.config import AgentConfig, load_agent
from p2pdist.errors import ConfigError, UpstreamNotAllowed
from p2pdist.oci import Index, Manifest, Reference, parse_manifest
from p2pdist.trust import (
    CandidateResult,
    LoadedPolicy,
    RequirementResult,
    UpstreamSource,
    Verdict,
    explain_image,
    load_policy,
)


def verify(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="The image as it is pulled: ghcr.io/acme/app:1, app@sha256:...")
    ],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="This policy file instead of the configuration's trust.policy_file.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="P2PDIST_CONFIG", help="The agent's file: registries, credentials, policy."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with the whole reasoning.")] = False,
) -> None:
    """Say whether the policy accepts an image, with every signature that was looked at and why it counts or doesn't.

    Exit status: 0 accepted, 1 refused or the registry can't be asked, 2 wrong command line, configuration or policy.
    """
    image = Reference.parse(reference)
    settings = load_agent(config, os.environ)
    file = policy if policy is not None else settings.trust.policy_file
    if file is None:
        raise ConfigError("no policy to judge by: name one with --policy, or as trust.policy_file with --config")
    loaded = load_policy(file)
    verdict, manifest = asyncio.run(_judge(settings, loaded, image))
    if as_json:
        typer.echo(json.dumps({"policy_file": str(file), "generation": loaded.generation, **asdict(verdict)}))
    else:
        show([*verdict_lines(loaded, verdict), *_hints(verdict, manifest)])
    raise typer.Exit(0 if verdict.accepted else 1)


async def _judge(config: AgentConfig, loaded: LoadedPolicy, image: Reference) -> tuple[Verdict, Manifest | Index]:
    from p2pdist.agent import make_upstreams, trust_settings  # here: loads the whole agent, which status need not

    stores = trust_settings(config).stores_for(image.repository)
    async with make_upstreams(config) as upstreams, aiohttp.ClientSession() as session:
        try:
            registry = upstreams.registry(image.repository.registry)
        except UpstreamNotAllowed as error:
            name = image.repository.registry
            raise ConfigError(
                f"{name} is none of the configuration's registries: name it in a [[registries]] table, "
                f"or set P2PDIST_REGISTRIES={name}"
            ) from error
        fetched = await registry.get_manifest(image.repository, image.target)
        manifest = parse_manifest(fetched.raw, fetched.media_type, fetched.digest.algorithm)
        source = UpstreamSource(upstreams, session, proxies=config.proxies)
        now = datetime.now(UTC)
        verdict = await explain_image(
            loaded.policy, source, image.repository, image.target, manifest, now=now, stores=stores
        )
    return verdict, manifest


def verdict_lines(loaded: LoadedPolicy, verdict: Verdict) -> Iterator[Line]:
    """A verdict for people."""
    name = f"{verdict.repository}{'@' if ':' in verdict.target else ':'}{verdict.target}"
    yield Line(name, "accepted" if verdict.accepted else "refused", "bold green" if verdict.accepted else "bold red")
    yield Line(verdict.digest, "digest", "bold", 2)
    yield Line(f"{loaded.origin}, generation {loaded.generation[:12]}", "policy", "bold", 2)
    yield Line(f"{verdict.scope}, which requires all of:", "scope", "bold", 2)
    for requirement in verdict.requirements:
        yield from _requirement(requirement)
    for unread in verdict.unread:
        yield Line(unread, "not looked at", "yellow", 2)
    if verdict.accepted and verdict.expires is not None:
        yield Line(f"{datetime.fromtimestamp(verdict.expires, UTC):%Y-%m-%d %H:%M} UTC", "good until", "bold", 2)
    yield Line(f"{verdict.requests} requests in {verdict.round_trips} round trips", "signatures asked for", "bold", 2)


def _requirement(result: RequirementResult) -> Iterator[Line]:
    yield Line(result.requirement, "met" if result.met else "not met", "green" if result.met else "red", 4)
    yield Line(result.reason, indent=6)
    for candidate in result.candidates:
        yield _candidate(candidate)


def _candidate(one: CandidateResult) -> Line:
    if not one.accepted:
        return Line(f"{one.where} ({one.form}): {one.reason}", "does not count", "red", 6)
    named = f", for {one.identity}" if one.identity else ""
    return Line(f"{one.where} ({one.form}): {one.reason}, by {one.signer}{named}", "counts", "green", 6)


def _hints(verdict: Verdict, manifest: Manifest | Index) -> Iterator[Line]:
    if verdict.accepted and isinstance(manifest, Index):
        yield Line(f"its {len(manifest.manifests)} images pass with this index", indent=2)
    if verdict.incomplete:
        yield Line("something could not be fetched for the moment; try again", "incomplete", "yellow", 2)
    if not verdict.accepted and ":" in verdict.target and isinstance(manifest, Manifest):
        yield Line("if it belongs to a signed index, pull that: the agent then serves this image too", indent=2)
