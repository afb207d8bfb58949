"""The gate: what passes to the daemon, for how long, and what no longer does when the policy changes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from trust_kit import (
    NOW,
    REPOSITORY,
    SIMPLE_TYPE,
    MemorySource,
    NotationCa,
    dumps,
    image,
    index,
    jws,
    new_key,
    payload,
    pem,
    referrer,
    signature_manifest,
    simple,
    target,
)

from p2pdist.errors import ConfigError, PolicyError
from p2pdist.oci import Digest, Index, Manifest, Repository, parse_manifest
from p2pdist.trust import Enforcement, TrustGate, TrustSettings

KEY, OTHER_KEY = new_key(), new_key()
IMAGE, OTHER = image(), image("other")
ELSEWHERE = Repository("registry.test", "app/two")
SIGNED = {"type": "sigstoreSigned", "keyPath": "k.pub", "signedIdentity": {"type": "matchRepository"}}
ANYTHING = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}


class Lab:
    """A policy on disk, a registry in memory, clocks that are set by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = MemorySource()
        self.now = NOW.timestamp()
        self.monotonic = 1000.0
        self.enforcement = Enforcement.ENFORCE
        self.ttl = 86_400.0
        (directory / "k.pub").write_bytes(pem(KEY))
        self.policy({"registry.test": [SIGNED]})

    def policy(self, scopes: dict[str, object], default: object = None) -> None:
        document = {"default": default or [REJECT], "transports": {"docker": scopes}}
        self.write("policy.json", json.dumps(document).encode())

    def write(self, name: str, data: bytes) -> None:
        fresh = self.directory / f"{name}.new"
        fresh.write_bytes(data)
        os.replace(fresh, self.directory / name)

    def sign(self, manifest: Manifest | Index, reference: str = str(REPOSITORY)) -> None:
        self.source.sign_simple(manifest, simple(KEY, payload(manifest, reference)))

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds

    @asynccontextmanager
    async def gate(self) -> AsyncIterator[TrustGate]:
        settings = TrustSettings(
            self.enforcement, self.directory / "policy.json", self.directory / "ledger.sqlite", ttl_seconds=self.ttl
        )
        gate = await TrustGate.open(settings, self.source, clock=lambda: self.now, monotonic=lambda: self.monotonic)
        try:
            yield gate
        finally:
            await gate.close()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def refused(
    gate: TrustGate, target_: str, manifest: Manifest | Index, repository: Repository = REPOSITORY
) -> str:
    with pytest.raises(PolicyError) as caught:
        await gate.admit_manifest(repository, target_, manifest)
    return str(caught.value)


def blobs(manifest: Manifest) -> list[Digest]:
    return [manifest.config.digest, *(layer.digest for layer in manifest.layers)]


def blob_passes(gate: TrustGate, digest: Digest, repository: Repository = REPOSITORY) -> bool:
    try:
        gate.admit_blob(repository, digest)
    except PolicyError:
        return False
    return True


# --- manifests and blobs ------------------------------------------------------------------------------------------


async def test_a_signed_image_passes_with_its_blobs_and_an_unsigned_one_with_none(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        assert not any(blob_passes(gate, digest) for digest in blobs(IMAGE)), "before its manifest"
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        assert all(blob_passes(gate, digest) for digest in blobs(IMAGE))
        text = await refused(gate, "1.0", OTHER)
        assert "registry.test/app/one:1.0" in text
        assert "no signature was found" in text
        assert not any(blob_passes(gate, digest) for digest in blobs(OTHER))
        assert gate.servable(REPOSITORY) == {IMAGE.digest, *blobs(IMAGE)}


async def test_the_same_digest_passes_in_one_repository_and_not_in_another(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        assert "matchRepository does not accept" in await refused(gate, "1.0", IMAGE, ELSEWHERE)
        assert not any(blob_passes(gate, digest, ELSEWHERE) for digest in blobs(IMAGE))


async def test_a_tag_moved_to_an_unsigned_image_is_refused_and_the_old_one_stays_by_digest(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        await refused(gate, "1.0", OTHER)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)


async def test_a_digest_that_was_accepted_by_tag_passes_although_its_identity_is_the_tag(lab: Lab) -> None:
    lab.policy({"registry.test": [{**SIGNED, "signedIdentity": {"type": "matchExact"}}]})
    lab.sign(IMAGE, f"{REPOSITORY}:1.0")
    async with lab.gate() as gate:
        await refused(gate, str(IMAGE.digest), IMAGE)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)
        await refused(gate, "2.0", IMAGE)


async def test_children_pass_with_their_index_and_not_without(lab: Lab) -> None:
    both = index(IMAGE, OTHER)
    lab.sign(both)
    async with lab.gate() as gate:
        await refused(gate, str(IMAGE.digest), IMAGE)
        await gate.admit_manifest(REPOSITORY, "1.0", both)
        assert not blob_passes(gate, blobs(IMAGE)[0]), "a child's blobs are known once the child is"
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)
        assert all(blob_passes(gate, digest) for digest in blobs(IMAGE))
        assert not blob_passes(gate, blobs(OTHER)[0])
        await refused(gate, str(IMAGE.digest), IMAGE, ELSEWHERE)


async def test_an_index_within_an_index_passes_on_what_it_has(lab: Lab) -> None:
    inner = index(IMAGE)
    outer = index(inner)
    lab.sign(outer)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", outer)
        await refused(gate, str(IMAGE.digest), IMAGE)
        await gate.admit_manifest(REPOSITORY, str(inner.digest), inner)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)


async def test_a_child_by_tag_is_judged_itself(lab: Lab) -> None:
    both = index(IMAGE)
    lab.sign(both)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", both)
        await refused(gate, "child", IMAGE)


async def test_a_scope_of_exactly_this_digest_is_asked_although_the_tag_was_accepted(lab: Lab) -> None:
    lab.policy({"registry.test": [SIGNED], f"{REPOSITORY}@{IMAGE.digest}": [REJECT]})
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        await refused(gate, str(IMAGE.digest), IMAGE)


async def test_in_a_scope_that_accepts_anything_blobs_are_not_held_back(lab: Lab) -> None:
    lab.policy({"registry.test": [ANYTHING]})
    async with lab.gate() as gate:
        assert blob_passes(gate, blobs(IMAGE)[0])
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
    assert lab.source.asked == []


async def test_requirements_are_all_to_be_met(lab: Lab) -> None:
    lab.write("k2.pub", pem(OTHER_KEY))
    lab.policy({"registry.test": [ANYTHING, SIGNED, {**SIGNED, "keyPath": "k2.pub"}]})
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        assert "k2.pub" in await refused(gate, "1.0", IMAGE)
    both = [simple(KEY, payload(IMAGE)), simple(OTHER_KEY, payload(IMAGE))]
    lab.source.sign_simple(IMAGE, *both)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)


# --- time ---------------------------------------------------------------------------------------------------------


async def test_a_signature_made_later_is_seen_within_thirty_seconds(lab: Lab) -> None:
    async with lab.gate() as gate:
        await refused(gate, "1.0", IMAGE)
        lab.sign(IMAGE)
        asked = len(lab.source.asked)
        lab.later(19)  # and an answer of the tracker may be ten seconds old
        await refused(gate, "1.0", IMAGE)
        assert len(lab.source.asked) == asked, "a refusal is remembered meanwhile"
        lab.later(1.1)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)


async def test_another_tag_asked_meanwhile_does_not_make_the_refusal_last_longer(lab: Lab) -> None:
    async with lab.gate() as gate:
        await refused(gate, "1.0", IMAGE)
        lab.sign(IMAGE)
        lab.later(13)
        await refused(gate, "2.0", IMAGE)
        lab.later(7.1)
        await gate.admit_manifest(REPOSITORY, "2.0", IMAGE)


async def test_a_refusal_because_of_the_registry_is_forgotten_soon(lab: Lab) -> None:
    lab.sign(IMAGE)
    tag = f"sha256-{IMAGE.digest.hex}.sig"
    lab.source.broken = {tag}
    async with lab.gate() as gate:
        assert "can't be fetched" in await refused(gate, "1.0", IMAGE)
        lab.source.broken = set()
        await refused(gate, "1.0", IMAGE)
        lab.later(3.1)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)


async def test_a_verdict_ends_with_its_time_to_live(lab: Lab) -> None:
    lab.sign(IMAGE)
    lab.ttl = 100.0
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        asked = len(lab.source.asked)
        lab.later(99)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        assert len(lab.source.asked) == asked, "a warm check asks nothing"
        lab.later(1)
        assert not blob_passes(gate, blobs(IMAGE)[0])
        await gate.revive_blob(REPOSITORY, blobs(IMAGE)[0])
        assert blob_passes(gate, blobs(IMAGE)[0])


async def test_a_verdict_ends_with_the_signature_and_with_the_certificate(lab: Lab) -> None:
    ca, key = NotationCa(), new_key()
    ca.store(lab.directory / "store")
    requirement = {
        "type": "p2pdist.notation",
        "trustStorePath": "store",
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["*"],
    }
    lab.policy({"registry.test": [requirement]})
    chain = ca.leaf(key, end=NOW + timedelta(minutes=10))
    notation = "application/vnd.cncf.notary.signature"
    raw = jws(key, chain, target(IMAGE), expiry=NOW + timedelta(minutes=5))
    lab.source.attach(IMAGE, referrer(IMAGE, raw, "application/jose+json", notation))
    lab.source.attach(OTHER, referrer(OTHER, jws(key, chain, target(OTHER)), "application/jose+json", notation))
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        await gate.admit_manifest(REPOSITORY, "2.0", OTHER)
        lab.later(300)
        assert "expired" in await refused(gate, "1.0", IMAGE)
        assert not blob_passes(gate, blobs(IMAGE)[0])
        assert blob_passes(gate, blobs(OTHER)[0])
        lab.later(301)
        assert "not valid now" in await refused(gate, "2.0", OTHER)
        assert not blob_passes(gate, blobs(OTHER)[0])


# --- the policy changes -------------------------------------------------------------------------------------------


async def test_a_revoked_key_refuses_at_once_also_what_was_accepted(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        before = gate.status().generation
        lab.write("k.pub", pem(OTHER_KEY))
        assert not blob_passes(gate, blobs(IMAGE)[0])
        await refused(gate, "1.0", IMAGE)
        await refused(gate, str(IMAGE.digest), IMAGE)
        await gate.revive_blob(REPOSITORY, blobs(IMAGE)[0])
        assert not blob_passes(gate, blobs(IMAGE)[0])
        assert gate.status().generation != before


async def test_what_the_new_policy_accepts_too_goes_on_after_being_judged_again(lab: Lab) -> None:
    both = index(IMAGE)
    lab.sign(both)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", both)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)
        lab.policy({"registry.test/app": [SIGNED]})
        assert not blob_passes(gate, blobs(IMAGE)[0])
        await gate.revive_blob(REPOSITORY, blobs(IMAGE)[0])
        assert blob_passes(gate, blobs(IMAGE)[0])


async def test_a_refusal_ends_with_the_policy_that_made_it(lab: Lab) -> None:
    async with lab.gate() as gate:
        await refused(gate, "1.0", IMAGE)
        lab.policy({"registry.test": [ANYTHING]})
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda lab: lab.write("policy.json", b"{"),
        lambda lab: lab.policy({"registry.test": [{"type": "nonsense"}]}),
        lambda lab: lab.write("k.pub", b"nonsense"),
        lambda lab: (lab.directory / "k.pub").unlink(),
        lambda lab: (lab.directory / "policy.json").unlink(),
    ],
    ids=["malformed", "unknown type", "no key", "key file gone", "policy file gone"],
)
async def test_a_changed_policy_that_is_wrong_changes_nothing_and_says_so_once(
    lab: Lab, break_it: Callable[[Lab], object]
) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        before = gate.status().generation
        with capture_logs() as logs:
            break_it(lab)
            await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
            await refused(gate, "1.0", OTHER)
        status = gate.status()
        assert status.generation == before
        assert status.problem
        assert [log["log_level"] for log in logs].count("error") == 1
        lab.write("k.pub", pem(KEY))
        lab.policy({"registry.test": [SIGNED]})
        assert gate.status().problem is None


async def test_a_policy_that_changes_during_a_verdict_is_the_one_that_counts(lab: Lab) -> None:
    lab.sign(IMAGE)
    source = lab.source
    ask = source.manifest

    async def swapping(repository: Repository, target_: str, limit: int) -> bytes | None:
        lab.policy({"registry.test": [REJECT]})
        return await ask(repository, target_, limit)

    source.manifest = swapping  # type: ignore[method-assign]
    async with lab.gate() as gate:
        assert "rejects everything" in await refused(gate, "1.0", IMAGE)
        assert gate.servable(REPOSITORY) == set()


async def test_an_agent_that_can_not_read_its_policy_does_not_start(lab: Lab) -> None:
    lab.write("policy.json", b'{"default": [{"type": "nonsense"}]}')
    with pytest.raises(ConfigError, match="nonsense"):
        async with lab.gate():
            pass
    with pytest.raises(ConfigError, match="policy file"):
        await TrustGate.open(TrustSettings(Enforcement.ENFORCE, None, lab.directory / "l"), lab.source)


# --- a restart ----------------------------------------------------------------------------------------------------


async def test_what_was_accepted_is_known_after_a_restart_and_only_under_the_same_policy(lab: Lab) -> None:
    both = index(IMAGE)
    lab.sign(both)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", both)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)
    lab.source.manifests.clear()
    async with lab.gate() as gate:
        assert all(blob_passes(gate, digest) for digest in blobs(IMAGE))
        await gate.admit_manifest(REPOSITORY, "1.0", both)
        await gate.admit_manifest(REPOSITORY, str(IMAGE.digest), IMAGE)
    lab.later(lab.ttl + 1)
    async with lab.gate() as gate:
        assert not blob_passes(gate, blobs(IMAGE)[0])
    lab.later(-lab.ttl)
    lab.write("k.pub", pem(OTHER_KEY))
    async with lab.gate() as gate:
        assert not blob_passes(gate, blobs(IMAGE)[0])


async def test_a_broken_record_is_started_anew_and_not_believed(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
    (lab.directory / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    async with lab.gate() as gate:
        assert not blob_passes(gate, blobs(IMAGE)[0])
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)


# --- signature objects --------------------------------------------------------------------------------------------


def parsed(raw: bytes) -> Manifest | Index:
    return parse_manifest(raw, None)


async def test_signature_objects_pass_and_so_do_their_blobs(lab: Lab) -> None:
    raw, _ = signature_manifest([simple(KEY, payload(IMAGE))])
    lab.sign(IMAGE)
    tag = f"sha256-{IMAGE.digest.hex}.sig"
    manifest = parsed(raw)
    assert isinstance(manifest, Manifest)
    lab.source.add_blobs(signature_manifest([simple(KEY, payload(IMAGE))])[1])
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, tag, manifest)
        assert all(blob_passes(gate, digest) for digest in blobs(manifest))
        assert not any(blob_passes(gate, digest, ELSEWHERE) for digest in blobs(manifest))
        assert gate.servable(REPOSITORY) == {manifest.digest, *blobs(manifest)}
        assert not blob_passes(gate, blobs(IMAGE)[0]), "the image that it signs has not passed with it"
    envelope, _ = referrer(IMAGE, b"{}")
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, str(Digest.of(envelope)), parsed(envelope))


async def test_a_sig_tag_is_no_door_for_a_runnable_image(lab: Lab) -> None:
    tag = f"sha256-{OTHER.digest.hex}.sig"
    async with lab.gate() as gate:
        await refused(gate, tag, OTHER)
        # The same with the media type of a signature: dockerd asks for no layer types.
        archive = b"\x1f\x8b\x08" + b"a layer"
        raw, needed = signature_manifest([(archive, {})], SIMPLE_TYPE)
        lab.source.add_blobs(needed)
        await refused(gate, tag, parsed(raw))
        assert not blob_passes(gate, Digest.of(archive))


async def test_a_subject_is_no_door_for_a_runnable_image(lab: Lab) -> None:
    document = json.loads(IMAGE.raw)
    document["subject"] = {"mediaType": OTHER.media_type, "digest": str(OTHER.digest), "size": len(OTHER.raw)}
    async with lab.gate() as gate:
        await refused(gate, "1.0", parsed(dumps(document)))


async def test_a_fallback_tag_lets_nothing_through_but_itself(lab: Lab) -> None:
    listing = index(OTHER)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, f"sha256-{IMAGE.digest.hex}", listing)
        await refused(gate, str(OTHER.digest), OTHER)


# --- warn, off, many at once --------------------------------------------------------------------------------------


async def test_warn_lets_everything_through_and_shows_what_it_would_have_refused(lab: Lab) -> None:
    lab.enforcement = Enforcement.WARN
    async with lab.gate() as gate, asyncio.TaskGroup() as tasks:
        judging = tasks.create_task(gate.run())
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        gate.admit_blob(REPOSITORY, blobs(OTHER)[0])
        async with asyncio.timeout(10):
            while not gate.status().refusals:
                await asyncio.sleep(0)
        judging.cancel()
        status = gate.status()
        assert (status.counts.would_refuse, status.counts.refused) == (1, 0)
        assert not status.refusals[0].enforced
        assert "no signature" in status.refusals[0].verdict.reason


async def test_warn_never_waits_for_a_registry(lab: Lab) -> None:
    lab.enforcement = Enforcement.WARN
    lab.source.hanging = {f"sha256-{IMAGE.digest.hex}.sig"}
    async with lab.gate() as gate, asyncio.TaskGroup() as tasks:
        judging = tasks.create_task(gate.run())
        for number in range(300):
            await gate.admit_manifest(REPOSITORY, f"t{number}", IMAGE)
        assert gate.status().counts.not_judged > 0
        judging.cancel()


async def test_off_judges_nothing(lab: Lab) -> None:
    lab.enforcement = Enforcement.OFF
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        gate.admit_blob(REPOSITORY, blobs(IMAGE)[0])
    assert lab.source.asked == []


async def test_many_at_once_share_one_verdict_also_when_the_first_gives_up(lab: Lab) -> None:
    lab.sign(IMAGE)
    tag = f"sha256-{IMAGE.digest.hex}.sig"
    lab.source.hanging = {tag}
    async with lab.gate() as gate, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(gate.admit_manifest(REPOSITORY, "1.0", IMAGE))
        others = [tasks.create_task(gate.admit_manifest(REPOSITORY, "1.0", IMAGE)) for _ in range(9)]
        while tag not in lab.source.asked:
            await asyncio.sleep(0)
        lab.source.hanging = set()
        first.cancel()
        await asyncio.gather(*others)
    assert lab.source.asked.count(tag) == 2


async def test_signatures_fetched_ahead_are_used(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.prefetch(REPOSITORY, "1.0", IMAGE.digest)
        asked = len(lab.source.asked)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE)
        assert len(lab.source.asked) == asked


async def test_a_clients_own_authorization_is_passed_on(lab: Lab) -> None:
    lab.sign(IMAGE)
    async with lab.gate() as gate:
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE, authorization="Basic eA==")
    assert lab.source.behalf == ["Basic eA=="]


async def test_one_client_without_access_does_not_spoil_the_verdict_for_one_with(lab: Lab) -> None:
    lab.sign(IMAGE)
    lab.source.denies = "Basic eA=="
    async with lab.gate() as gate:
        assert "can't be fetched" in await refused(gate, "1.0", IMAGE)
        await gate.admit_manifest(REPOSITORY, "1.0", IMAGE, authorization="Basic eA==")


async def test_the_verdict_names_every_candidate_and_its_reason(lab: Lab) -> None:
    good, bad = simple(KEY, payload(IMAGE)), simple(OTHER_KEY, payload(IMAGE))
    lab.source.sign_simple(IMAGE, bad, simple(KEY, payload(OTHER)), good, bad)
    async with lab.gate() as gate:
        verdict = await gate.explain(REPOSITORY, "1.0", IMAGE)
    assert verdict.accepted
    (requirement,) = verdict.requirements
    assert [candidate.accepted for candidate in requirement.candidates] == [False, False, True]
    assert "none of the trusted keys" in requirement.candidates[0].reason
    assert "another image" in requirement.candidates[1].reason
    assert "k.pub" in requirement.candidates[2].signer
