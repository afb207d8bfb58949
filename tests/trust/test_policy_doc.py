"""docs/policy.md: every example works as it stands, and every threat statement names tests that exist."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from trust_kit import (
    NOTATION_TYPE,
    NOW,
    MemorySource,
    NotationCa,
    Sigstore,
    bundle,
    dumps,
    image,
    jws,
    new_key,
    payload,
    pem,
    referrer,
    simple,
    statement,
    target,
)

from p2pdist.oci import Manifest, Repository
from p2pdist.trust import LoadedPolicy, explain_image, explain_policy, load_policy

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "policy.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: ([a-z-]+) -->\n```json\n(.*?)```", DOC, re.DOTALL))
FILES = Path(__file__).parent / "gpg"

KEYS = {name: new_key() for name in ("payments", "search", "search-next", "platform", "vendor", "scanner", "stranger")}
CA, SIGSTORE = NotationCa(), Sigstore()
IMAGE = image()
TRUST_POLICY = {
    "version": "1.0",
    "trustPolicies": [
        {
            "name": "own",
            "registryScopes": ["registry.example/app"],
            "signatureVerification": {"level": "strict"},
            "trustStores": ["ca:acme"],
            "trustedIdentities": ["*"],
        }
    ],
}


class Node:
    """A policy of the page on a node of its own, and a registry."""

    def __init__(self, example: str, directory: Path) -> None:
        (directory / "keys").mkdir()
        for name, key in KEYS.items():
            (directory / "keys" / f"{name}.pub").write_bytes(pem(key))
        (directory / "keys" / "release.gpg").write_bytes((FILES / "release.gpg").read_bytes())
        (directory / "trusted_root.json").write_bytes(SIGSTORE.trusted_root())
        CA.store(directory / "notation")
        (directory / "notation" / "trustpolicy.json").write_bytes(dumps(TRUST_POLICY))
        path = directory / "policy.json"
        path.write_text(EXAMPLES[example].replace("/etc/p2pdist", str(directory)))
        self.loaded: LoadedPolicy = load_policy(path)
        self.source = MemorySource()

    async def accepts(self, reference: str, manifest: Manifest = IMAGE) -> bool:
        name, _, tag = reference.rpartition(":")
        verdict = await explain_image(
            self.loaded.policy, self.source, Repository.parse(name), tag, manifest, now=NOW, stores=["file:///store"]
        )
        return verdict.accepted

    def bundle(self, *keys: str, manifest: Manifest = IMAGE) -> None:
        self.source.pages.clear()
        made = [referrer(manifest, dumps(bundle(KEYS[key], statement(manifest)))) for key in keys]
        self.source.attach(manifest, *made)

    def simple(self, key: str, reference: str) -> None:
        self.source.sign_simple(IMAGE, simple(KEYS[key], payload(IMAGE, reference)))


async def test_key_per_team(tmp_path: Path) -> None:
    node = Node("key-per-team", tmp_path)
    node.bundle("payments")
    node.simple("search-next", "registry.example/search/index")
    assert await node.accepts("registry.example/payments/api:1")
    assert await node.accepts("registry.example/search/index:1")
    assert not await node.accepts("registry.example/search/other:1")
    assert not await node.accepts("registry.example/else:1")
    node.bundle("search")
    assert not await node.accepts("registry.example/payments/api:1")


async def test_keyless_ci(tmp_path: Path) -> None:
    node = Node("keyless-ci", tmp_path)
    workflow = "https://github.com/acme/app/.github/workflows/{}@refs/heads/main"
    for name, accepted in (("release.yml", True), ("pull-request.yml", False)):
        key = new_key()
        certificate = SIGSTORE.certificate(
            key, subject=workflow.format(name), issuer="https://token.actions.githubusercontent.com"
        )
        node.source.pages.clear()
        node.source.attach(IMAGE, referrer(IMAGE, dumps(SIGSTORE.bundle(statement(IMAGE), certificate, key))))
        assert await node.accepts("ghcr.io/acme/app:1") is accepted
    assert not await node.accepts("ghcr.io/acme/other:1")


@pytest.mark.parametrize(("example", "intern"), [("notation-company", False), ("notation-trustpolicy", True)])
async def test_notation(example: str, intern: bool, tmp_path: Path) -> None:
    node = Node(example, tmp_path)
    for common, accepted in (("builder", True), ("intern", intern)):
        key = new_key()
        raw = jws(key, CA.leaf(key, common), target(IMAGE), expiry=NOW + timedelta(hours=1))
        node.source.pages.clear()
        node.source.attach(IMAGE, referrer(IMAGE, raw, "application/jose+json", NOTATION_TYPE))
        assert await node.accepts("registry.example/app:1") is accepted
    assert not await node.accepts("elsewhere.example/app:1")


async def test_mixed(tmp_path: Path) -> None:
    node = Node("mixed", tmp_path)
    assert await node.accepts("docker.io/library/alpine:3")
    assert not await node.accepts("docker.io/somebody/alpine:3")
    node.bundle("platform")
    assert await node.accepts("registry.example/app:1")
    assert not await node.accepts("registry.example/vendor/db:2")
    node.simple("vendor", "vendor.example/products/db:2")
    assert await node.accepts("registry.example/vendor/db:2")
    assert not await node.accepts("registry.example/vendor/db:3")
    node.bundle("stranger")
    assert not await node.accepts("registry.example/vendor/db:2")
    # The GPG signature was made for registry.test/app/one:1.0: another name, so it doesn't count here.
    path = f"file:///store/legacy/app@sha256={IMAGE.digest.hex}/signature-1"
    node.source.stores[path] = (FILES / "good").read_bytes()
    assert not await node.accepts("registry.example/legacy/app:1.0")
    assert any(asked == path for asked in node.source.asked)


async def test_scanned(tmp_path: Path) -> None:
    node = Node("scanned", tmp_path)
    vulnerabilities = "https://cosign.sigstore.dev/attestation/vuln/v1"

    def scan(key: str, critical: object, compliant: object) -> None:
        result = {"scanner": {"result": {"critical": critical, "compliant": compliant}}}
        node.source.pages.clear()
        node.source.attach(
            IMAGE,
            referrer(IMAGE, dumps(bundle(KEYS["platform"], statement(IMAGE)))),
            referrer(IMAGE, dumps(bundle(KEYS[key], statement(IMAGE, vulnerabilities, result)))),
        )

    node.bundle("platform")
    assert not await node.accepts("registry.example/app:1"), "signed, but not scanned"
    for key, critical, compliant, accepted in (
        ("scanner", 0, True, True),
        ("scanner", 1, True, False),
        ("scanner", 0, False, False),
        ("scanner", 0, "true", False),
        ("scanner", False, True, False),
        ("platform", 0, True, False),
    ):
        scan(key, critical, compliant)
        assert await node.accepts("registry.example/app:1") is accepted


async def test_roll_out(tmp_path: Path) -> None:
    node = Node("roll-out", tmp_path)
    assert await node.accepts("registry.example/search/index:1")
    assert not await node.accepts("registry.example/payments/api:1")
    node.bundle("payments")
    assert await node.accepts("registry.example/payments/api:1")


def test_every_example_is_run_and_can_be_explained(tmp_path: Path) -> None:
    here = Path(__file__).read_text()
    assert len(EXAMPLES) == DOC.count("```json")
    for number, name in enumerate(EXAMPLES):
        assert f'"{name}"' in here
        place = tmp_path / str(number)
        place.mkdir()
        explained = explain_policy(Node(name, place).loaded.policy)
        assert explained[-1].scope == "default"
        assert all(scope.requirements for scope in explained)


def test_every_threat_statement_names_a_test_that_exists() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", DOC))
    defined = {
        name
        for path in Path(__file__).parents[1].rglob("test_*.py")
        for name in re.findall(r"def (test_[a-z0-9_]+)\(", path.read_text())
    }
    assert named
    assert named <= defined, sorted(named - defined)
