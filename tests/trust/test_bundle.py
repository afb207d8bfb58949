"""Sigstore bundles and attestations: the attacks on them, each refused; and what must go through."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from trust_kit import (
    ISSUER,
    NOW,
    SIGN_V1,
    SUBJECT,
    Sigstore,
    b64,
    bundle,
    dumps,
    envelope,
    image,
    index,
    new_key,
    pem,
    statement,
)

from p2pdist.oci import Digest
from p2pdist.trust.keys import TrustedKey
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.bundle import Signed, verify_bundle, verify_dsse
from p2pdist.trust.signatures.keyless import Identity, KeylessTrust, TrustRoot
from p2pdist.trust.signatures.statement import Condition
from p2pdist.trust.signatures.trustedroot import parse_trusted_root

KEY = new_key()
TRUSTED = (TrustedKey.from_pem(pem(KEY), "team"),)
IMAGE = image()
SIGSTORE = Sigstore()
ROOT = parse_trusted_root(SIGSTORE.trusted_root(), "root")
KEYLESS = KeylessTrust(ROOT, Identity(SUBJECT, ISSUER))
VULNERABILITIES = "https://cosign.sigstore.dev/attestation/vuln/v1"


def verify(
    made: dict[str, Any],
    trust: Any = TRUSTED,
    predicate: str = SIGN_V1,
    conditions: tuple[Condition, ...] = (),
    manifest: bytes = IMAGE.raw,
) -> Signed:
    return verify_bundle(dumps(made), manifest, trust, predicate, conditions)


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(Refused) as caught:
        verify(*arguments, **named)
    return str(caught.value)


def test_a_bundle_by_a_trusted_key_counts_for_image_and_index() -> None:
    assert "team" in verify(bundle(KEY, statement(IMAGE))).signer
    both = index(IMAGE)
    assert verify(bundle(KEY, statement(both)), manifest=both.raw).digest == both.digest


def test_another_key_does_not_count() -> None:
    assert "none of the trusted keys" in refused(bundle(new_key(), statement(IMAGE)))


def test_a_bundle_copied_to_another_image_does_not_count() -> None:
    assert "another image" in refused(bundle(KEY, statement(IMAGE)), manifest=image("evil").raw)


def test_an_attestation_posing_as_a_signature_does_not_count() -> None:
    assert "predicateType" in refused(bundle(KEY, statement(IMAGE, VULNERABILITIES)))


def test_the_payload_type_is_signed_too() -> None:
    made = bundle(KEY, statement(IMAGE))
    made["dsseEnvelope"]["payloadType"] = "application/vnd.in-toto+JSON"
    refused(made)
    data = statement(IMAGE)
    plain = KEY.sign(data, ec.ECDSA(hashes.SHA256()))
    made = bundle(KEY, data)
    made["dsseEnvelope"]["signatures"][0]["sig"] = b64(plain)  # over the payload, without DSSE's framing
    refused(made)


def test_any_of_several_subjects_counts_in_either_algorithm() -> None:
    subjects = [{"digest": {"sha1": "x"}}, {"digest": {"sha512": Digest.of(IMAGE.raw, "sha512").hex}}]
    assert verify(bundle(KEY, statement(IMAGE, subject=subjects))).digest.algorithm == "sha512"
    refused(bundle(KEY, statement(IMAGE, subject=[])))
    refused(bundle(KEY, statement(IMAGE, subject=[{"digest": {"sha256": IMAGE.digest.hex.upper()}}])))
    refused(bundle(KEY, statement(IMAGE, subject=[{"digest": {"gitCommit": IMAGE.digest.hex}}])))


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b.pop("mediaType"),
        lambda b: b.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.2"),
        lambda b: b.update(mediaType="application/json"),
        lambda b: b.pop("dsseEnvelope"),
        lambda b: b.update(messageSignature={}),
        lambda b: b["dsseEnvelope"].update(signatures=[]),
        lambda b: b["dsseEnvelope"].update(signatures=b["dsseEnvelope"]["signatures"] * 2),
        lambda b: b["dsseEnvelope"].update(signatures=[1]),
        lambda b: b["dsseEnvelope"].update(payload="%%%"),
        lambda b: b["dsseEnvelope"].update(payload=b["dsseEnvelope"]["payload"] + "\n"),
        lambda b: b["dsseEnvelope"].update(payload=b64(b"{}")),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"].update(payloadType=1),
        lambda b: b.update(dsseEnvelope=None),
    ],
    ids=range(14),
)
def test_a_bundle_that_is_malformed_does_not_count(edit: Callable[[dict[str, Any]], object]) -> None:
    made = bundle(KEY, statement(IMAGE))
    edit(made)
    refused(made)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        statement(IMAGE, _type="https://in-toto.io/Statement/v2"),
        statement(IMAGE, _type="https://in-toto.io/Statement/v0.1"),
        statement(IMAGE, predicateType=[SIGN_V1]),
        statement(IMAGE, subject={}),
        statement(IMAGE, subject=[None]),
        statement(IMAGE, subject=[{"digest": {"sha256": "x"}}]),
        statement(IMAGE).replace(b'"subject"', b'"subject": [], "subject"'),
        statement(IMAGE, predicate=json.loads("[" * 32 + "]" * 32)),
    ],
    ids=range(11),
)
def test_even_signed_a_statement_must_be_one(data: bytes) -> None:
    refused(bundle(KEY, data))


def test_nesting_without_end_ends_in_a_refusal() -> None:
    with pytest.raises(Refused, match="nested"):
        verify_bundle(b"[" * 1000, IMAGE.raw, TRUSTED, SIGN_V1)
    with pytest.raises(Refused, match="values"):
        verify_bundle(b"[" * 100_000, IMAGE.raw, TRUSTED, SIGN_V1)
    with pytest.raises(Refused, match="at most"):
        verify_bundle(b" " * 2_000_000, IMAGE.raw, TRUSTED, SIGN_V1)


# --- keyless ------------------------------------------------------------------------------------------------------


def test_a_keyless_bundle_counts_for_the_exact_identity() -> None:
    signed = verify(SIGSTORE.bundle(statement(IMAGE)), KEYLESS)
    assert signed.signer == f"{SUBJECT} by {ISSUER}"
    assert signed.expires is None, "the certificate lived for minutes; the log says that it was alive"


def test_a_bundle_by_key_has_no_identity() -> None:
    assert "no certificate" in refused(bundle(KEY, statement(IMAGE)), KEYLESS)


@pytest.mark.parametrize(
    "wanted",
    [Identity(SUBJECT + "-evil", ISSUER), Identity(SUBJECT[:-2], ISSUER), Identity(SUBJECT, "https://evil.test")],
)
def test_another_identity_of_the_same_authority_does_not_count(wanted: Identity) -> None:
    refused(SIGSTORE.bundle(statement(IMAGE)), KeylessTrust(ROOT, wanted))


def test_a_signature_logged_outside_the_certificates_life_does_not_count() -> None:
    for at in (NOW + timedelta(minutes=10), NOW - timedelta(minutes=2)):
        assert "lived" in refused(SIGSTORE.bundle(statement(IMAGE), at=at), KEYLESS)


def test_a_certificate_for_another_purpose_does_not_count() -> None:
    key = new_key()
    certificate = SIGSTORE.certificate(key, purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    assert "code" in refused(SIGSTORE.bundle(statement(IMAGE), certificate, key), KEYLESS)


def test_a_certificate_that_no_transparency_log_has_seen_does_not_count() -> None:
    key = new_key()
    assert "SCT" in refused(SIGSTORE.bundle(statement(IMAGE), SIGSTORE.certificate(key, sct=False), key), KEYLESS)
    foreign = Sigstore(ca_key=SIGSTORE.ca_key, log_key=SIGSTORE.log_key)
    foreign.ca = SIGSTORE.ca
    assert "log" in refused(SIGSTORE.bundle(statement(IMAGE), foreign.certificate(key), key), KEYLESS)


def test_foreign_authorities_and_logs_do_not_count() -> None:
    foreign = Sigstore()
    refused(foreign.bundle(statement(IMAGE)), KEYLESS)
    half = Sigstore(ca_key=foreign.ca_key, ct_key=SIGSTORE.ct_key, log_key=SIGSTORE.log_key)
    refused(half.bundle(statement(IMAGE)), KEYLESS)


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.pop("inclusionProof"),
        lambda e: e.pop("inclusionPromise"),
        lambda e: e.update(integratedTime=str(int(e["integratedTime"]) + 1)),
        lambda e: e.update(integratedTime="-1"),
        lambda e: e.update(integratedTime="9" * 19),
        lambda e: e.update(logIndex="3"),
        lambda e: e.update(logId={"keyId": b64(b"x" * 32)}),
        lambda e: e.update(canonicalizedBody=b64(base64.b64decode(e["canonicalizedBody"]) + b" ")),
        lambda e: e.update(kindVersion={"kind": "hashedrekord", "version": "0.0.1"}),
        lambda e: e["inclusionProof"].update(hashes=[]),
        lambda e: e["inclusionProof"].update(hashes=e["inclusionProof"]["hashes"] * 40),
        lambda e: e["inclusionProof"].update(hashes=[b64(b"x" * 32), *e["inclusionProof"]["hashes"][1:]]),
        lambda e: e["inclusionProof"].update(logIndex="0"),
        lambda e: e["inclusionProof"].update(logIndex="99"),
        lambda e: e["inclusionProof"].update(treeSize="0"),
        lambda e: e["inclusionProof"].update(treeSize="6"),
        lambda e: e["inclusionProof"].update(rootHash=b64(b"x" * 32)),
        lambda e: e["inclusionProof"].pop("checkpoint"),
        lambda e: e["inclusionProof"]["checkpoint"].update(envelope="x"),
        lambda e: e["inclusionProof"]["checkpoint"].update(
            envelope=e["inclusionProof"]["checkpoint"]["envelope"].replace("log.test - 1", "log.test - 2")
        ),
        lambda e: e["inclusionProof"]["checkpoint"].update(
            envelope=e["inclusionProof"]["checkpoint"]["envelope"].partition("\n\n")[0] + "\n\n"
        ),
        lambda e: e["inclusionProof"]["checkpoint"].update(
            envelope=e["inclusionProof"]["checkpoint"]["envelope"] + "junk"
        ),
    ],
    ids=range(22),
)
def test_a_log_entry_that_is_edited_in_any_place_does_not_count(edit: Callable[[dict[str, Any]], object]) -> None:
    made = SIGSTORE.bundle(statement(IMAGE))
    edit(made["verificationMaterial"]["tlogEntries"][0])
    refused(made, KEYLESS)


def test_a_log_entry_of_another_signature_certificate_or_payload_does_not_count() -> None:
    one, two = SIGSTORE.bundle(statement(IMAGE)), SIGSTORE.bundle(statement(IMAGE))
    one["verificationMaterial"]["tlogEntries"] = two["verificationMaterial"]["tlogEntries"]
    assert "another" in refused(one, KEYLESS)
    key = new_key()
    certificate = SIGSTORE.certificate(key)
    three = SIGSTORE.bundle(statement(IMAGE), certificate, key)
    four = SIGSTORE.bundle(statement(image("other")), certificate, key)
    three["verificationMaterial"]["tlogEntries"] = four["verificationMaterial"]["tlogEntries"]
    assert "another" in refused(three, KEYLESS)


def test_any_of_several_log_entries_counts_within_the_limit() -> None:
    made = SIGSTORE.bundle(statement(IMAGE))
    good = made["verificationMaterial"]["tlogEntries"][0]
    bad = {**good, "integratedTime": "1"}
    made["verificationMaterial"]["tlogEntries"] = [bad, good]
    assert verify(made, KEYLESS)
    made["verificationMaterial"]["tlogEntries"] = [bad] * 8 + [good]
    assert "at most" in refused(made, KEYLESS)


def test_a_trees_first_and_last_leaf_are_proved_whatever_its_size() -> None:
    for others in range(0, 18):
        key = new_key()
        made = SIGSTORE.bundle(statement(IMAGE), SIGSTORE.certificate(key), key)
        body = base64.b64decode(made["verificationMaterial"]["tlogEntries"][0]["canonicalizedBody"])
        entry = SIGSTORE.entry(body, others=others)
        if others == 0:  # protobuf's JSON leaves zeros out
            del entry["logIndex"], entry["inclusionProof"]["logIndex"], entry["inclusionProof"]["hashes"]
        made["verificationMaterial"]["tlogEntries"] = [entry]
        assert verify(made, KEYLESS)


def test_a_log_or_authority_that_was_not_in_use_then_does_not_count() -> None:
    root = json.loads(SIGSTORE.trusted_root())
    early = {"start": "2025-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}
    for place in ("tlogs", "ctlogs"):
        edited = json.loads(json.dumps(root))
        edited[place][0]["publicKey"]["validFor"] = early
        assert "in use" in refused(SIGSTORE.bundle(statement(IMAGE)), _keyless(edited))
    edited = json.loads(json.dumps(root))
    edited["certificateAuthorities"][0]["validFor"] = early
    assert "in use" in refused(SIGSTORE.bundle(statement(IMAGE)), _keyless(edited))


def _keyless(root: dict[str, Any]) -> KeylessTrust:
    parsed: TrustRoot = parse_trusted_root(dumps(root), "root")
    return KeylessTrust(parsed, KEYLESS.identity)


# --- attestations -------------------------------------------------------------------------------------------------

PASSED = {"scanner": {"result": [{"severity": "none", "count": 0}], "passed": True, "a/b~c": "x", "rate": 1}}


@pytest.mark.parametrize(
    ("pointer", "equals", "met"),
    [
        ("/scanner/passed", True, True),
        ("/scanner/passed", 1, False),
        ("/scanner/passed", "true", False),
        ("/scanner/result/0/severity", "none", True),
        ("/scanner/result/0/count", 0, True),
        ("/scanner/result/0/count", False, False),
        ("/scanner/result/1/count", 0, False),
        ("/scanner/result/00/count", 0, True),
        ("/scanner/result/-1/count", 0, False),
        ("/scanner/a~1b~0c", "x", True),
        ("/scanner/rate", 1.0, False),
        ("/scanner/nothing", None, False),
        ("/scanner", None, False),
        ("/passed", True, False),
    ],
)
def test_a_condition_is_met_by_exactly_that_value(pointer: str, equals: object, met: bool) -> None:
    made = bundle(KEY, statement(IMAGE, VULNERABILITIES, PASSED))
    conditions = (Condition(pointer, equals),)
    if met:
        assert verify(made, predicate=VULNERABILITIES, conditions=conditions)
    else:
        refused(made, predicate=VULNERABILITIES, conditions=conditions)


def test_all_conditions_must_be_met() -> None:
    made = bundle(KEY, statement(IMAGE, VULNERABILITIES, PASSED))
    both = (Condition("/scanner/passed", True), Condition("/scanner/rate", 2))
    refused(made, predicate=VULNERABILITIES, conditions=both)


def test_a_signature_posing_as_an_attestation_does_not_count() -> None:
    refused(bundle(KEY, statement(IMAGE)), predicate=VULNERABILITIES)


def test_an_attached_attestation_of_the_older_kind_counts_by_key() -> None:
    data = statement(IMAGE, VULNERABILITIES, PASSED, _type="https://in-toto.io/Statement/v0.1")
    raw = dumps(envelope(KEY, data))
    assert verify_dsse(raw, IMAGE.raw, TRUSTED, VULNERABILITIES, ()).digest == IMAGE.digest
    with pytest.raises(Refused):
        verify_dsse(raw, image("evil").raw, TRUSTED, VULNERABILITIES, ())


def test_a_signature_by_another_key_than_the_certificates_does_not_count_even_if_logged() -> None:
    made = SIGSTORE.bundle(statement(IMAGE), SIGSTORE.certificate(new_key()), new_key())
    assert "not valid" in refused(made, KEYLESS)


def test_a_proof_to_a_root_of_ones_own_under_a_genuine_checkpoint_does_not_count() -> None:
    made = SIGSTORE.bundle(statement(IMAGE))
    entry = made["verificationMaterial"]["tlogEntries"][0]
    body = base64.b64decode(entry["canonicalizedBody"])
    genuine = SIGSTORE.entry(b'{"kind": "something else"}', others=9)["inclusionProof"]["checkpoint"]
    entry["inclusionProof"]["checkpoint"] = genuine
    assert "another tree" in refused(made, KEYLESS)
    entry["inclusionProof"] = {**SIGSTORE.entry(body, others=9)["inclusionProof"], "checkpoint": genuine}
    assert "another tree" in refused(made, KEYLESS), "of the same size"
