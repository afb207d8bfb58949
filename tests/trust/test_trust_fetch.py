"""Fetching signatures: everything within the limits is looked at, nothing beyond them is read."""

from __future__ import annotations

import json

import pytest
from trust_kit import (
    BUNDLE_TYPE,
    NOTATION_TYPE,
    REPOSITORY,
    MemorySource,
    bundle,
    descriptor,
    dumps,
    image,
    new_key,
    payload,
    referrer,
    signature_manifest,
    simple,
    statement,
)

from p2pdist.oci import OCI_INDEX, OCI_MANIFEST, Digest
from p2pdist.trust import limits
from p2pdist.trust.evidence import Evidence, Form
from p2pdist.trust.fetch import gather

IMAGE = image()
KEY = new_key()
ALL = frozenset(Form)
STORE = "file:///store"
PATH = f"{STORE}/app/one@sha256={IMAGE.digest.hex}/signature-"


async def find(source: MemorySource, forms: frozenset[Form] = ALL, **more: float) -> Evidence:
    return await gather(source, REPOSITORY, IMAGE.digest, forms, [STORE], **more)


def attached(number: int, artifact_type: str | None = BUNDLE_TYPE) -> tuple[bytes, list[bytes]]:
    return referrer(IMAGE, dumps({"number": number}), artifact_type=artifact_type)


def forms_of(evidence: Evidence) -> list[Form]:
    return [candidate.form for candidate in evidence.candidates]


async def test_every_form_is_found_at_once_in_few_round_trips() -> None:
    source = MemorySource()
    source.sign_simple(IMAGE, simple(KEY, payload(IMAGE)))
    dsse_type = "application/vnd.dsse.envelope.v1+json"
    source.tag(IMAGE, ".att", *signature_manifest([(b"{}", {})], dsse_type))
    notation = referrer(IMAGE, b"{ }", "application/jose+json", NOTATION_TYPE)
    source.attach(IMAGE, referrer(IMAGE, dumps(bundle(KEY, statement(IMAGE)))), notation)
    source.stores[f"{PATH}1"] = b"gpg"
    evidence = await find(source)
    assert set(forms_of(evidence)) == ALL
    assert evidence.round_trips <= 4
    assert evidence.unread == ()


async def test_only_what_the_policy_could_use_is_asked_for() -> None:
    source = MemorySource()
    await find(source, frozenset({Form.SIMPLE}))
    assert source.asked == [f"sha256-{IMAGE.digest.hex}.sig"]
    assert (await find(MemorySource(), frozenset())).requests == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_a_cold_check_takes_at_most_four_round_trips_with_the_fallback_tag_too(count: int) -> None:
    source = MemorySource(referrers_api=False)
    source.attach(IMAGE, *(attached(number) for number in range(count)))
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert len(evidence.candidates) == count
    assert evidence.round_trips == 4


async def test_a_declared_size_over_the_limit_is_refused_before_it_is_fetched() -> None:
    source = MemorySource()
    data, notes = simple(KEY, payload(IMAGE))
    raw, blobs = signature_manifest([(data, notes)])
    document = json.loads(raw)
    document["layers"][0]["size"] = limits.PAYLOAD + 1
    source.tag(IMAGE, ".sig", dumps(document), blobs)
    evidence = await find(source, frozenset({Form.SIMPLE}))
    assert evidence.candidates == ()
    assert source.asked == [f"sha256-{IMAGE.digest.hex}.sig"]
    assert "declares" in evidence.unread[0].reason


async def test_bytes_of_another_digest_or_size_do_not_count() -> None:
    source = MemorySource()
    data, notes = simple(KEY, payload(IMAGE))
    source.sign_simple(IMAGE, (data, notes))
    source.blobs[str(Digest.of(data))] = data + b"x"
    assert (await find(source, frozenset({Form.SIMPLE}))).candidates == ()
    source.blobs[str(Digest.of(data))] = b"x" * len(data)
    assert (await find(source, frozenset({Form.SIMPLE}))).candidates == ()


async def test_a_referrers_manifest_of_another_digest_does_not_count() -> None:
    source = MemorySource()
    raw, blobs = attached(1)
    source.attach(IMAGE, (raw, blobs))
    source.manifests[str(Digest.of(raw))] = raw[:-1] + b" }"
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert evidence.candidates == ()
    assert "another digest" in evidence.unread[0].reason


async def test_one_that_can_not_be_fetched_does_not_hide_the_others() -> None:
    source = MemorySource()
    one, two = attached(1), attached(2)
    source.attach(IMAGE, one, two)
    source.sign_simple(IMAGE, simple(KEY, payload(IMAGE)))
    source.broken = {str(Digest.of(one[0])), f"{PATH}1"}
    evidence = await find(source)
    assert sorted(forms_of(evidence)) == sorted([Form.BUNDLE, Form.SIMPLE])
    assert sum(unread.fault for unread in evidence.unread) == 2


async def test_referrers_that_can_not_be_asked_leave_the_fallback_tag() -> None:
    source = MemorySource(referrers_api=False)
    source.attach(IMAGE, attached(1))
    source.broken = {"referrers 1"}
    assert forms_of(await find(source, frozenset({Form.BUNDLE}))) == [Form.BUNDLE]


async def test_what_hangs_ends_with_the_deadline_and_the_rest_counts() -> None:
    source = MemorySource()
    one, two = attached(1), attached(2)
    source.attach(IMAGE, one, two)
    source.hanging = {str(Digest.of(one[0]))}
    evidence = await find(source, frozenset({Form.BUNDLE}), seconds=0.05)
    assert len(evidence.candidates) == 1
    assert evidence.unread[-1].fault


async def test_junk_before_a_good_signature_does_not_hide_it() -> None:
    source = MemorySource()
    source.attach(IMAGE, *(attached(number) for number in range(60)))
    assert len((await find(source, frozenset({Form.BUNDLE}))).candidates) == 60


async def test_a_list_of_referrers_without_end_is_cut_at_the_limits() -> None:
    source = MemorySource()
    for page in range(limits.REFERRER_PAGES + 2):
        source.attach(IMAGE, *(attached(page * 20 + number) for number in range(20)))
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert len(evidence.candidates) == limits.REFERRERS
    assert sum(asked.startswith("referrers") for asked in source.asked) == limits.REFERRER_PAGES


async def test_a_tag_with_layers_without_end_is_cut_at_the_limits() -> None:
    source = MemorySource()
    layers = [simple(KEY, payload(image(str(number)))) for number in range(limits.SIGNATURES + 5)]
    source.sign_simple(IMAGE, *layers)
    evidence = await find(source, frozenset({Form.SIMPLE}))
    assert len(evidence.candidates) == limits.SIGNATURES


async def test_layers_with_the_same_payload_are_fetched_once() -> None:
    source = MemorySource()
    data, notes = simple(KEY, payload(IMAGE))
    source.sign_simple(IMAGE, (data, notes), (data, {**notes, "other": "1"}))
    evidence = await find(source, frozenset({Form.SIMPLE}))
    assert len(evidence.candidates) == 2
    assert source.asked.count(str(Digest.of(data))) == 1


async def test_all_together_may_not_take_more_than_the_total() -> None:
    source = MemorySource()
    large = [referrer(IMAGE, bytes([number]) * limits.ENVELOPE) for number in range(20)]
    source.attach(IMAGE, *large)
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert len(evidence.candidates) < 17
    assert evidence.bytes <= limits.TOTAL


async def test_what_a_list_says_of_types_is_a_hint_only() -> None:
    unlisted = MemorySource()
    unlisted.attach(IMAGE, attached(1), typed=False)
    assert forms_of(await find(unlisted)) == [Form.BUNDLE]
    untyped = MemorySource()
    untyped.attach(IMAGE, attached(1, None))
    assert forms_of(await find(untyped)) == [Form.BUNDLE]
    mislabelled = MemorySource()
    mislabelled.attach(IMAGE, attached(1, "application/spdx+json"))
    assert forms_of(await find(mislabelled)) == [Form.BUNDLE]


async def test_other_artifacts_are_not_fetched_where_there_are_signatures() -> None:
    source = MemorySource()
    sbom = referrer(IMAGE, b"{}", "application/spdx+json", "application/spdx+json")
    source.attach(IMAGE, sbom, attached(1))
    await find(source, frozenset({Form.BUNDLE}))
    assert str(Digest.of(sbom[0])) not in source.asked


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"null",
        b'{"manifests": {}}',
        b'{"manifests": [1, {}, {"digest": "x"}]}',
        dumps({"manifests": [descriptor(OCI_MANIFEST, b"x", size=-1)]}),
        dumps({"manifests": [{**descriptor(OCI_MANIFEST, b"x"), "digest": "sha256:x"}]}),
        dumps({"manifests": [descriptor(OCI_INDEX, b"x")]}),
        b"[" * 50_000,
    ],
    ids=range(8),
)
async def test_a_list_that_is_malformed_is_noted_and_does_not_crash(page: bytes) -> None:
    source = MemorySource()
    source.pages[str(IMAGE.digest)] = [page]
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert evidence.candidates == ()
    assert evidence.unread


async def test_one_malformed_entry_does_not_hide_the_others() -> None:
    source = MemorySource()
    source.attach(IMAGE, attached(1))
    page = json.loads(source.pages[str(IMAGE.digest)][0])
    page["manifests"].insert(0, {"digest": 5})
    source.pages[str(IMAGE.digest)] = [dumps(page)]
    assert len((await find(source, frozenset({Form.BUNDLE}))).candidates) == 1


async def test_a_signature_manifest_with_other_than_one_layer_is_no_envelope() -> None:
    raw, blobs = attached(1)
    document = json.loads(raw)
    document["layers"] *= 2
    source = MemorySource()
    source.attach(IMAGE, (dumps(document), blobs))
    evidence = await find(source, frozenset({Form.BUNDLE}))
    assert evidence.candidates == ()
    assert "2 layers" in evidence.unread[0].reason


async def test_a_gpg_store_is_read_up_to_its_gap() -> None:
    source = MemorySource()
    for number in (1, 2, 4):
        source.stores[f"{PATH}{number}"] = b"s%d" % number
    evidence = await find(source, frozenset({Form.GPG}))
    assert [candidate.raw for candidate in evidence.candidates] == [b"s1", b"s2"]
    for number in range(1, 60):
        source.stores[f"{PATH}{number}"] = b"s%d" % number
    evidence = await find(source, frozenset({Form.GPG}))
    assert len(evidence.candidates) == limits.SIGNATURES
    assert evidence.round_trips <= 4


async def test_a_gpg_signature_over_the_limit_is_not_looked_at() -> None:
    source = MemorySource()
    source.stores[f"{PATH}1"] = b"x" * (limits.GPG_SIGNATURE + 1)
    source.stores[f"{PATH}2"] = b"good"
    evidence = await find(source, frozenset({Form.GPG}))
    assert [candidate.raw for candidate in evidence.candidates] == [b"good"]
