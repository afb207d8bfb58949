"""A policy in force at the agent: what faces the daemon is gated, and signatures are read about once per cluster."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.fleet import Fleet, until
from support.registry import FakeRegistry, Hold, Image, noise

from p2pdist.config import TrustConfig
from p2pdist.errors import ConfigError
from p2pdist.oci import OCI_INDEX, OCI_MANIFEST, parse_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "trust"))
import trust_kit as kit

IDENTITY = ', "signedIdentity": {"type": "matchRepository"}'  # which bundles have not


def policy_file(path: Path, registry: FakeRegistry, key: ec.EllipticCurvePrivateKey) -> Path:
    path.with_name("team.pub").write_bytes(kit.pem(key))
    requirement = {
        "type": "sigstoreSigned",
        "keyPath": str(path.with_name("team.pub")),
        "signedIdentity": {"type": "matchRepository"},
    }
    scopes = {f"{registry.name}/app": [requirement]}
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes}}))
    return path


def sign(registry: FakeRegistry, image: Image, key: ec.EllipticCurvePrivateKey) -> None:
    sign_raw(registry, image.raw, key)


def sign_raw(registry: FakeRegistry, data: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    manifest = parse_manifest(data, None)
    payload = kit.payload(manifest, f"{registry.name}/app/a:1")
    raw, blobs = kit.signature_manifest([kit.simple(key, payload)])
    for blob in blobs:
        registry.add_blob(blob)
    registry.add_manifest("app/a", raw, OCI_MANIFEST, f"sha256-{manifest.digest.hex}.sig")


def attach_bundle(registry: FakeRegistry, image: Image, key: ec.EllipticCurvePrivateKey) -> None:
    manifest = parse_manifest(image.raw, None)
    raw, blobs = kit.referrer(manifest, kit.dumps(kit.bundle(key, kit.statement(manifest))))
    for blob in blobs:
        registry.add_blob(blob)
    digest = registry.add_manifest("app/a", raw, OCI_MANIFEST)
    if not registry.referrers:
        listed = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": len(raw)}
        page = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]}
        registry.add_manifest("app/a", kit.dumps(page), OCI_INDEX, f"sha256-{image.digest.hex}")


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return kit.new_key()


async def test_a_signed_image_is_pulled_and_its_signature_is_read_once_per_cluster(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        sign(registry, image, key)
        trust = TrustConfig(enforcement="enforce", policy_file=policy_file(tmp_path / "policy.json", registry, key))
        nodes = [await fleet.start(trust=trust) for _ in range(4)]
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert len(registry.requests(r"\.sig$", "GET")) <= 2
        assert all(node.agent.status()["trust"]["counts"]["accepted"] == 1 for node in nodes)
        asked = len(registry.log)
        await fleet.pull(nodes[0], image)
        assert len(registry.log) == asked  # a warm one asks nothing more


@pytest.mark.parametrize("referrers", [True, False], ids=["referrers API", "fallback tag"])
async def test_what_refers_to_an_image_is_asked_for_about_once_per_cluster(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey, referrers: bool
) -> None:
    async with FakeRegistry(referrers=referrers) as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        attach_bundle(registry, image, key)
        path = policy_file(tmp_path / "policy.json", registry, key)
        path.write_text(path.read_text().replace("sigstoreSigned", "p2pdist.sigstoreBundle").replace(IDENTITY, ""))
        nodes = [await fleet.start(trust=TrustConfig(enforcement="enforce", policy_file=path)) for _ in range(5)]
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))
        assert all(node.agent.status()["trust"]["counts"]["accepted"] == 1 for node in nodes)
        assert 1 <= len(registry.requests("/referrers/")) <= 2


async def test_a_listing_with_more_pages_is_asked_for_by_each_node(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    async with FakeRegistry(page=1) as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        for one in (kit.new_key(), key, kit.new_key()):
            attach_bundle(registry, image, one)
        path = policy_file(tmp_path / "policy.json", registry, key)
        path.write_text(path.read_text().replace("sigstoreSigned", "p2pdist.sigstoreBundle").replace(IDENTITY, ""))
        nodes = [await fleet.start(trust=TrustConfig(enforcement="enforce", policy_file=path)) for _ in range(2)]
        await asyncio.gather(*(fleet.pull(node, image) for node in nodes))


async def test_an_unsigned_image_is_refused_by_tag_digest_and_blob_with_the_reason(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        trust = TrustConfig(enforcement="enforce", policy_file=policy_file(tmp_path / "policy.json", registry, key))
        node = await fleet.start(trust=trust)
        for kind, target in (("manifests", "1"), ("manifests", image.digest), ("blobs", image.layers[0])):
            status, body = await fleet.get(node, kind, target)
            assert status == 403, (kind, status, body)
            assert json.loads(body)["errors"][0]["code"] == "DENIED"
        async with fleet.client.head(node.url + fleet.path("manifests", "1")) as answer:
            assert answer.status == 403
            assert answer.reason is not None and answer.reason.startswith("DENIED: policy refuses "), "for containerd"
            assert answer.reason.endswith("no signature was found")
        assert node.agent.status()["trust"]["refusals"]


async def test_signatures_of_a_digest_are_fetched_beside_its_manifest_and_those_of_a_signed_indexs_child_not_at_all(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        sign(registry, image, key)
        trust = TrustConfig(enforcement="enforce", policy_file=policy_file(tmp_path / "policy.json", registry, key))
        node = await fleet.start(trust=trust)
        held = registry.fail(Hold(), path=f"manifests/{image.digest}")
        asking = asyncio.ensure_future(fleet.get(node, "manifests", image.digest))
        await until(lambda: registry.requests(r"\.sig$"))
        assert not asking.done()
        held.release.set()
        assert (await asking)[0] == 200
        registry.heal()

        child = registry.add_image("app/a", None, [noise(1000)])
        index = registry.add_index("app/a", "2", [child])
        sign_raw(registry, registry.manifests["app/a"]["2"][0], key)
        for target in ("2", index, child.digest):
            assert (await fleet.get(node, "manifests", target))[0] == 200
        assert not registry.requests(child.digest.hex + r"\.sig$")


async def test_with_warn_it_is_pulled_and_shown(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        trust = TrustConfig(enforcement="warn", policy_file=policy_file(tmp_path / "policy.json", registry, key))
        node = await fleet.start(trust=trust)
        await fleet.pull(node, image)
        async with asyncio.timeout(10):
            while not node.agent.status()["trust"]["counts"]["would_refuse"]:
                await asyncio.sleep(0.01)


async def test_a_revoked_key_refuses_at_once_without_a_restart(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        image = registry.add_image("app/a", "1", [noise(200_000)])
        sign(registry, image, key)
        path = policy_file(tmp_path / "policy.json", registry, key)
        node = await fleet.start(trust=TrustConfig(enforcement="enforce", policy_file=path))
        await fleet.pull(node, image)
        policy_file(path, registry, kit.new_key())
        assert (await fleet.get(node, "manifests", "1"))[0] == 403
        assert (await fleet.get(node, "blobs", image.layers[0]))[0] == 403


async def test_an_agent_with_a_broken_policy_does_not_start(tmp_path: Path) -> None:
    async with FakeRegistry() as registry, Fleet(tmp_path, registry) as fleet:
        (tmp_path / "policy.json").write_text('{"default": [{"type": "accept"}]}')
        with pytest.raises(ConfigError, match="accept"):
            await fleet.start(trust=TrustConfig(enforcement="enforce", policy_file=tmp_path / "policy.json"))
