#!/usr/bin/env python3
"""What the signature policy costs a pull: requests to the registry and round trips, cold and warm, and CPU per verdict.

    bench/trust.py                    as JSON; no root, a few seconds

A cold check is the first pull of an image through a real agent, beside the same pull with no policy; a warm one is the
next pull of it. CPU times are those of the quickest of many runs, what it takes whatever else the machine does. `nodes`
agents then pull a fresh signed image at once. Exit status 1 when a number is over its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "trust")]

import structlog
import test_trust_numbers as numbers
import trust_kit as kit
from support.fleet import Fleet
from support.registry import FakeRegistry, Image, noise

from p2pdist.config import TrustConfig
from p2pdist.oci import OCI_MANIFEST, Manifest, Repository, parse_manifest
from p2pdist.trust.evidence import Candidate, Form

GOALS = {  # round trips or requests; milliseconds of CPU
    "cold_round_trips": 4,
    "warm_requests": 0,
    "cluster": 10,  # two of each object and listing, however many nodes
    "verdict_from_cache_ms": 1.0,
    "verdict_by_key_ms": 5.0,
    "verdict_keyless_ms": 15.0,
}
KEYLESS = {"identity": numbers.IDENTITY, "trustedRootPath": "r"}
FORMS = ("simple by key", "bundle by key", "bundle by key, fallback tag", "bundle keyless")


def cpu() -> dict[str, float]:
    """Milliseconds of CPU of one verdict, its signature at hand."""
    repo, judged = numbers.REPO, {}
    bundle, keyless = (
        kit.dumps(kit.bundle(numbers.KEY, kit.statement(numbers.IMAGE))),
        kit.dumps(numbers.SIGSTORE.bundle(kit.statement(numbers.IMAGE))),
    )
    for name, requirement, candidate in (
        (
            "simple by key",
            {"type": "sigstoreSigned", "keyPath": "k.pub", **repo},
            Candidate(Form.SIMPLE, "x", numbers.SIMPLE_DATA, "", numbers.SIMPLE_NOTES),
        ),
        (
            "bundle by key",
            {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"},
            Candidate(Form.BUNDLE, "x", bundle),
        ),
        ("bundle keyless", {"type": "p2pdist.sigstoreBundle", **KEYLESS}, Candidate(Form.BUNDLE, "x", keyless)),
        (
            "simple keyless",
            {"type": "p2pdist.sigstoreSimpleKeyless", **KEYLESS, **repo},
            Candidate(Form.SIMPLE, "x", numbers.KEYLESS_DATA, "", numbers.KEYLESS_NOTES),
        ),
    ):
        work = numbers.verdict(requirement, candidate)
        assert work().accepted, name
        judged[name] = round(numbers.best(work, 200), 3)
    return judged


async def from_cache(directory: Path) -> dict[str, float]:
    """Milliseconds, waiting included, of what a known manifest and a blob of it ask the gate."""
    source = kit.MemorySource()
    source.attach(
        numbers.IMAGE, kit.referrer(numbers.IMAGE, kit.dumps(kit.bundle(numbers.KEY, kit.statement(numbers.IMAGE))))
    )
    gate = await numbers.gate(directory, source, {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub"})
    try:
        await gate.admit_manifest(numbers.REPOSITORY, "1.0", numbers.IMAGE)
        found = []
        for _ in range(200):
            before = time.perf_counter()
            await gate.admit_manifest(numbers.REPOSITORY, "1.0", numbers.IMAGE)
            found.append(time.perf_counter() - before)
        blob = numbers.best(lambda: gate.admit_blob(numbers.REPOSITORY, numbers.IMAGE.layers[7].digest), 200)
        return {"manifest": round(min(found) * 1000, 4), "blob": round(blob, 4)}
    finally:
        await gate.close()


def requirement(form: str, directory: Path) -> dict[str, Any]:
    """With the key or trusted root that it names in `directory`."""
    (directory / "k.pub").write_bytes(kit.pem(numbers.KEY))
    (directory / "r").write_bytes(numbers.SIGSTORE.trusted_root())
    if form == "simple by key":
        return {"type": "sigstoreSigned", "keyPath": "k.pub", **numbers.REPO}
    return {"type": "p2pdist.sigstoreBundle", **(KEYLESS if "keyless" in form else {"keyPath": "k.pub"})}


def sign(registry: FakeRegistry, image: Image, form: str) -> None:
    manifest = parse_manifest(image.raw, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    if form == "simple by key":
        data = kit.payload(manifest, f"{registry.name}/app/a:1")
        raw, blobs = kit.signature_manifest([kit.simple(numbers.KEY, data)])
        registry.add_manifest("app/a", raw, OCI_MANIFEST, f"sha256-{image.digest.hex}.sig")
    else:
        statement = kit.statement(manifest)
        made = numbers.SIGSTORE.bundle(statement) if "keyless" in form else kit.bundle(numbers.KEY, statement)
        raw, blobs = kit.referrer(manifest, kit.dumps(made))
        digest = registry.add_manifest("app/a", raw, OCI_MANIFEST)
        if not registry.referrers:
            listed = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(raw)}
            page = {"schemaVersion": 2, "mediaType": kit.OCI_INDEX, "manifests": [listed]}
            registry.add_manifest("app/a", kit.dumps(page), kit.OCI_INDEX, f"sha256-{image.digest.hex}")
    for blob in blobs:
        registry.add_blob(blob)


async def pulls(form: str, directory: Path, nodes: int = 1) -> dict[str, Any]:
    """Requests that the registry got for a pull with the policy and without, and for the next pull."""
    directory.mkdir()
    counts = {}
    async with (
        FakeRegistry(referrers="fallback" not in form) as registry,
        Fleet(directory, registry, tracked=nodes > 1) as fleet,
    ):
        image = registry.add_image("app/a", "1", [noise(300_000), noise(70_000)])
        sign(registry, image, form)
        policy = directory / "policy.json"
        policy.write_text(json.dumps({"default": [requirement(form, directory)]}))
        trust = TrustConfig(enforcement="enforce", policy_file=policy)
        if nodes > 1:
            started = [await fleet.start(trust=trust) for _ in range(nodes)]
            await asyncio.gather(*(fleet.pull(node, image) for node in started))
            asked = [one for one in registry.log if _of_signature(one.path, image)]
            accepted = sum(node.agent.status()["trust"]["counts"]["accepted"] for node in started)
            return {"nodes": nodes, "verdicts": accepted, "requests_for_signatures": len(asked)}
        for name, options in (("off", {}), ("enforce", {"trust": trust})):
            node = await fleet.start(**options)
            before = len(registry.log)
            await fleet.pull(node, image)
            counts[name] = len(registry.log) - before
        before = len(registry.log)
        await fleet.pull(node, image)
        gate = node.agent._gate
        assert gate is not None
        verdict = await gate.explain(
            Repository(registry.name, "app/a"), "1", parse_manifest(image.raw, image.media_type)
        )
        return {
            "cold_round_trips": verdict.round_trips,
            "cold_extra_requests": counts["enforce"] - counts["off"],
            "warm_requests": len(registry.log) - before,
        }


def _of_signature(path: str, image: Image) -> bool:
    return not any(path.endswith(end) for end in ("/manifests/1", str(image.digest), *map(str, image.blobs)))


async def measure(directory: Path, nodes: int) -> dict[str, Any]:
    return {
        "pulls": {form: await pulls(form, directory / f"pull-{n}") for n, form in enumerate(FORMS)},
        "cluster": {form: await pulls(form, directory / f"cluster-{n}", nodes) for n, form in enumerate(FORMS[:3])},
        "verdict_from_cache_ms": await from_cache(directory),
        "verdict_cpu_ms": cpu(),
        "goals": GOALS,
    }


def misses(found: dict[str, Any]) -> list[str]:
    """The numbers that are over their goals."""
    cost = {f"{form}: {name}": row[name] for form, row in found["pulls"].items() for name in row if name in GOALS}
    over = [text for text, value in cost.items() if value > GOALS[text.rpartition(": ")[2]]]
    over += [
        f"from cache: {k}" for k, ms in found["verdict_from_cache_ms"].items() if ms > GOALS["verdict_from_cache_ms"]
    ]
    over += [
        f"cluster: {form}"
        for form, row in found["cluster"].items()
        if row["requests_for_signatures"] > GOALS["cluster"]
    ]
    for name, ms in found["verdict_cpu_ms"].items():
        if ms > GOALS["verdict_keyless_ms" if "keyless" in name else "verdict_by_key_ms"]:
            over.append(f"CPU: {name}")
    return over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=8, help="agents that pull one signed image (default: 8)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(measure(Path(directory), options.nodes))
    found["over"] = misses(found)
    print(json.dumps(found, indent=2))
    return 1 if found["over"] else 0


if __name__ == "__main__":
    sys.exit(main())
