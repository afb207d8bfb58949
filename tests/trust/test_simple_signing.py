"""cosign's simple signing: the attacks on it, each refused; and what must go through."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from trust_kit import (
    ISSUER,
    NOW,
    REPOSITORY,
    SUBJECT,
    PrivateKey,
    Sigstore,
    b64,
    image,
    new_key,
    payload,
    pem,
    sign,
    simple,
)

from p2pdist.oci import Digest
from p2pdist.trust.identity import MatchRepoDigestOrExact, MatchRepository, Name, SignedIdentity
from p2pdist.trust.keys import TrustedKey
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.bundle import Signed
from p2pdist.trust.signatures.certificates import Authority
from p2pdist.trust.signatures.keyless import Identity, KeylessTrust
from p2pdist.trust.signatures.simplesigning import FulcioTrust, KeyTrust, PkiTrust, SimpleTrust, verify_simple
from p2pdist.trust.signatures.trustedroot import parse_trusted_root

KEY = new_key()
IMAGE = image()
PULLED = Name(REPOSITORY, "1.0")
SIGSTORE = Sigstore()
KEYLESS = KeylessTrust(parse_trusted_root(SIGSTORE.trusted_root(), "root"), Identity(SUBJECT, ISSUER))


def trusts(*keys: PrivateKey) -> KeyTrust:
    return KeyTrust(tuple(TrustedKey.from_pem(pem(key), f"key {number}") for number, key in enumerate(keys)))


def verify(
    signed: tuple[bytes, dict[str, str]],
    trust: SimpleTrust | None = None,
    identity: SignedIdentity | None = None,
    manifest: bytes = IMAGE.raw,
) -> Signed:
    data, annotations = signed
    return verify_simple(data, annotations, manifest, PULLED, trust or trusts(KEY), identity or MatchRepository(), NOW)


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(Refused) as caught:
        verify(*arguments, **named)
    return str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["p256", "p384-sha384", "p521-sha512", "rsa2048", "ed25519"],
)
def test_a_signature_by_a_trusted_key_counts_and_says_who(key: PrivateKey) -> None:
    signed = verify(simple(key, payload(IMAGE)), trusts(new_key(), key))
    assert "key 1" in signed.signer
    assert signed.digest == IMAGE.digest
    assert signed.identity == str(REPOSITORY)


def test_another_key_does_not_count() -> None:
    assert "none of the trusted keys" in refused(simple(new_key(), payload(IMAGE)))


def test_algorithm_confusion_a_p384_key_with_sha256_does_not_count() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    data = payload(IMAGE)
    weaker = key.sign(data, ec.ECDSA(hashes.SHA256()))
    refused((data, {"dev.cosignproject.cosign/signature": b64(weaker)}), trusts(key))


def test_a_signature_copied_to_another_image_does_not_count() -> None:
    assert "another image" in refused(simple(KEY, payload(IMAGE)), manifest=image("evil").raw)


def test_image_and_signature_copied_to_another_repository_do_not_count() -> None:
    other = simple(KEY, payload(IMAGE, "registry.test/app/other"))
    assert "registry.test/app/other" in refused(other)


def test_the_default_identity_refuses_a_name_without_a_tag() -> None:
    refused(simple(KEY, payload(IMAGE)), identity=MatchRepoDigestOrExact())
    assert verify(simple(KEY, payload(IMAGE, f"{REPOSITORY}:1.0")), identity=MatchRepoDigestOrExact())
    refused(simple(KEY, payload(IMAGE, f"{REPOSITORY}:0.9")), identity=MatchRepoDigestOrExact())


def test_a_signed_payload_of_another_type_does_not_count() -> None:
    refused(simple(KEY, payload(IMAGE, type_="atomic container signature")))


def test_the_payloads_exact_bytes_are_signed() -> None:
    data, annotations = simple(KEY, payload(IMAGE))
    refused((data + b" ", annotations))


def test_a_sha512_digest_of_the_same_manifest_counts() -> None:
    document = json.loads(payload(IMAGE))
    document["critical"]["image"]["docker-manifest-digest"] = str(Digest.of(IMAGE.raw, "sha512"))
    assert verify(simple(KEY, json.dumps(document).encode()))


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(payload(IMAGE))
    edit(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        payload(IMAGE) + b"x",
        b"\xef\xbb\xbf" + payload(IMAGE),
        payload(IMAGE).decode().encode("utf-16"),
        payload(IMAGE).replace(b'"critical"', b'"Critical"'),
        payload(IMAGE).replace(b'"optional"', b'"critical": {}, "optional"'),
        payload(IMAGE).replace(b"sha256:", b"SHA256:"),
        payload(IMAGE).replace(b"sha256:", b"md5:"),
        b'{"critical":' + b"[" * 50_000,
        edited(lambda d: d.update(extra=1)),
        edited(lambda d: d.pop("optional")),
        edited(lambda d: d["critical"].update(extra=1)),
        edited(lambda d: d["critical"]["image"].update(extra=1)),
        edited(lambda d: d["critical"]["identity"].update(extra="x")),
        edited(lambda d: d["critical"].pop("type")),
        edited(lambda d: d["critical"].update(image=[])),
        edited(lambda d: d["critical"]["identity"].update({"docker-reference": ""})),
        edited(lambda d: d["critical"]["identity"].update({"docker-reference": "not a name"})),
        edited(lambda d: d.update(optional=[])),
        edited(lambda d: d.update(optional={"timestamp": 1.5})),
        edited(lambda d: d.update(optional={"creator": 1})),
    ],
    ids=range(24),
)
def test_even_signed_a_payload_must_be_exactly_of_the_format(data: bytes) -> None:
    refused(simple(KEY, data))


def test_optional_claims_do_not_matter() -> None:
    data = edited(lambda d: d.update(optional={"creator": "x", "timestamp": 1, "env": {"a": [1]}}))
    assert verify(simple(KEY, data))


@pytest.mark.parametrize("text", ["", "not base64!!", "AAAA", "====", "\u0100", "a" * 100_000])
def test_a_signature_annotation_that_is_none_does_not_count(text: str) -> None:
    refused((payload(IMAGE), {"dev.cosignproject.cosign/signature": text}))
    refused((payload(IMAGE), {}))


# --- keyless ------------------------------------------------------------------------------------------------------


def test_keyless_simple_signing_counts_for_the_exact_identity() -> None:
    signed = verify(SIGSTORE.simple(payload(IMAGE)), KEYLESS)
    assert SUBJECT in signed.signer
    assert "2026-11-24" in signed.method


@pytest.mark.parametrize(
    "wanted",
    [
        Identity(SUBJECT[:-1], ISSUER),
        Identity(SUBJECT + "x", ISSUER),
        Identity(SUBJECT.upper(), ISSUER),
        Identity(SUBJECT, ISSUER + "/"),
        Identity(ISSUER, SUBJECT),
    ],
)
def test_subject_and_issuer_are_compared_exactly(wanted: Identity) -> None:
    refused(SIGSTORE.simple(payload(IMAGE)), KeylessTrust(KEYLESS.root, wanted))


def test_keyless_simple_signing_with_a_log_entry_of_something_else_does_not_count() -> None:
    data, annotations = SIGSTORE.simple(payload(IMAGE))
    _, others = SIGSTORE.simple(payload(image("other")))
    mixed = {**annotations, "dev.sigstore.cosign/bundle": others["dev.sigstore.cosign/bundle"]}
    assert "another" in refused((data, mixed), KEYLESS)


@pytest.mark.parametrize("missing", ["dev.sigstore.cosign/certificate", "dev.sigstore.cosign/bundle"])
def test_keyless_simple_signing_without_certificate_or_log_does_not_count(missing: str) -> None:
    data, annotations = SIGSTORE.simple(payload(IMAGE))
    refused((data, {name: value for name, value in annotations.items() if name != missing}), KEYLESS)


@pytest.mark.parametrize("field", ["integratedTime", "logIndex"])
def test_an_edited_log_entry_does_not_count(field: str) -> None:
    data, annotations = SIGSTORE.simple(payload(IMAGE))
    entry = json.loads(annotations["dev.sigstore.cosign/bundle"])
    entry["Payload"][field] += 1
    refused((data, {**annotations, "dev.sigstore.cosign/bundle": json.dumps(entry)}), KEYLESS)


def test_a_certificate_of_another_authority_does_not_count() -> None:
    key = new_key()
    foreign = Sigstore(log_key=SIGSTORE.log_key, ct_key=SIGSTORE.ct_key)
    refused(SIGSTORE.simple(payload(IMAGE), foreign.certificate(key), key), KEYLESS)


FULCIO = FulcioTrust(
    (Authority(SIGSTORE.ca, ()),), ISSUER, "dev@acme.test", (TrustedKey.from_pem(pem(SIGSTORE.log_key), "rekor"),)
)


def test_fulcio_block_of_the_upstream_format() -> None:
    key = new_key()
    mine = SIGSTORE.certificate(key, subject="dev@acme.test", sct=False)
    assert verify(SIGSTORE.simple(payload(IMAGE), mine, key), FULCIO)
    other = SIGSTORE.certificate(key, subject="mallory@acme.test")
    refused(SIGSTORE.simple(payload(IMAGE), other, key), FULCIO)
    purpose = SIGSTORE.certificate(key, subject="dev@acme.test", purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    refused(SIGSTORE.simple(payload(IMAGE), purpose, key), FULCIO)
    as_uri = SIGSTORE.certificate(key, subject="mailto:dev@acme.test")
    refused(SIGSTORE.simple(payload(IMAGE), as_uri, key), FULCIO)


def test_a_key_with_a_log_needs_the_logs_promise_too() -> None:
    trust = KeyTrust(trusts(KEY).trusted, FULCIO.log_keys)
    assert "no annotation" in refused(simple(KEY, payload(IMAGE)), trust)


def test_a_certificate_of_ones_own_authority_must_be_valid_now() -> None:
    key = new_key()
    trust = PkiTrust((Authority(SIGSTORE.ca, ()),), "dev@acme.test", None)
    certificate = SIGSTORE.certificate(key, subject="dev@acme.test", sct=False)
    good = verify(SIGSTORE.simple(payload(IMAGE), certificate, key), trust)
    assert good.expires == certificate.not_valid_after_utc
    old = SIGSTORE.certificate(key, subject="dev@acme.test", sct=False, at=NOW - timedelta(days=1))
    refused(SIGSTORE.simple(payload(IMAGE), old, key), trust)
    refused(SIGSTORE.simple(payload(IMAGE), certificate, key), PkiTrust(trust.authorities, None, "acme.test"))


def test_a_key_that_is_too_weak_or_of_another_kind_is_never_trusted() -> None:
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(Refused):
            TrustedKey.from_pem(pem(key), "weak")
    with pytest.raises(Refused):
        TrustedKey.from_pem(pem(KEY) + pem(KEY), "two")
    assert sign(KEY, b"x")


@pytest.mark.parametrize("trust", [KEYLESS, FULCIO, PkiTrust((Authority(SIGSTORE.ca, ()),), "dev@acme.test", None)])
def test_a_signature_by_another_key_than_the_certificates_does_not_count_even_if_logged(trust: SimpleTrust) -> None:
    subject = SUBJECT if trust is KEYLESS else "dev@acme.test"
    made = SIGSTORE.simple(payload(IMAGE), SIGSTORE.certificate(new_key(), subject=subject), new_key())
    assert "not valid" in refused(made, trust)


def test_a_key_with_a_log_counts_with_the_logs_promise_of_this_signature_only() -> None:
    trust = KeyTrust(trusts(KEY).trusted, FULCIO.log_keys)
    data, annotations = SIGSTORE.simple(payload(IMAGE), key=KEY)
    entry = json.loads(annotations["dev.sigstore.cosign/bundle"])
    body = json.loads(base64.b64decode(entry["Payload"]["body"]))
    body["spec"]["signature"]["publicKey"]["content"] = b64(pem(KEY))
    made = SIGSTORE.entry(json.dumps(body).encode())
    entry["Payload"]["body"] = made["canonicalizedBody"]
    entry["SignedEntryTimestamp"] = made["inclusionPromise"]["signedEntryTimestamp"]
    annotations["dev.sigstore.cosign/bundle"] = json.dumps(entry)
    assert verify((data, annotations), trust)
    data, other = simple(KEY, payload(IMAGE))
    mixed = {**annotations, **other}
    assert "another signature" in refused((data, mixed), trust)
