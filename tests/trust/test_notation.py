"""notation's envelopes, chains and trust policies: the attacks, each refused; and what must go through."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from trust_kit import (
    NOW,
    NotationCa,
    PrivateKey,
    b64,
    b64url,
    cbor_int,
    cbor_map,
    cbor_time,
    cose,
    dumps,
    image,
    jws,
    new_key,
    target,
)

from p2pdist.errors import ConfigError
from p2pdist.trust.fields import Fields
from p2pdist.trust.notation import Statement, cbor, verify_notation
from p2pdist.trust.notation.names import certificate_name, parse_name
from p2pdist.trust.notation.trustpolicy import judged
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.bundle import Signed

JWS, COSE = "application/jose+json", "application/cose"
IMAGE = image()
CA = NotationCa()
KEY = new_key()
CHAIN = CA.leaf(KEY)
BUILDER = "x509.subject: C=US, ST=WA, O=acme, CN=builder"


def statement(
    level: str = "strict",
    identities: tuple[str, ...] = (BUILDER,),
    stores: tuple[str, ...] = ("ca:acme",),
    trusted: x509.Certificate = CA.root,
    **verification: object,
) -> Statement:
    document = {
        "trustStores": list(stores),
        "trustedIdentities": list(identities),
        "signatureVerification": {"level": level, **verification},
    }
    fields = Fields(document, "test", ConfigError)
    return judged("test", ("*",), fields, fields.object("signatureVerification"), lambda _type, _name: (trusted,))


def verify(
    raw: bytes, type_: str = JWS, by: Statement | None = None, now: datetime = NOW, media_type: str = IMAGE.media_type
) -> Signed:
    return verify_notation(raw, type_, IMAGE.raw, media_type, by or statement(), now)


def refused(*arguments: Any, **named: Any) -> str:
    with pytest.raises(Refused) as caught:
        verify(*arguments, **named)
    return str(caught.value)


KEYS = [
    new_key(),
    new_key(ec.SECP384R1()),
    new_key(ec.SECP521R1()),
    rsa.generate_private_key(65537, 2048),
    rsa.generate_private_key(65537, 3072),
]


@pytest.mark.parametrize("key", KEYS, ids=["ES256", "ES384", "ES512", "PS256", "PS384"])
def test_both_envelopes_count_with_every_algorithm(key: PrivateKey) -> None:
    chain = CA.leaf(key)
    for raw, type_ in ((jws(key, chain, target(IMAGE)), JWS), (cose(key, chain, target(IMAGE)), COSE)):
        signed = verify(raw, type_)
        assert "CN=builder" in signed.signer
        assert signed.expires == chain[0].not_valid_after_utc


def test_an_envelope_copied_to_another_image_does_not_count() -> None:
    assert "another image" in refused(jws(KEY, CHAIN, target(image("other"))))
    assert "another image" in refused(cose(KEY, CHAIN, target(image("other"))), COSE)


def test_size_and_media_type_are_signed_too() -> None:
    assert "size" in refused(jws(KEY, CHAIN, target(IMAGE, size=1)))
    other = "application/vnd.docker.distribution.manifest.v2+json"
    assert "mediaType" in refused(jws(KEY, CHAIN, target(IMAGE, mediaType=other)))
    assert "mediaType" in refused(jws(KEY, CHAIN, target(IMAGE)), media_type=other)


def test_an_unknown_envelope_does_not_count() -> None:
    refused(jws(KEY, CHAIN, target(IMAGE)), "application/json")
    refused(jws(KEY, CHAIN, target(IMAGE)), COSE)
    refused(cose(KEY, CHAIN, target(IMAGE)), JWS)


# --- headers ------------------------------------------------------------------------------------------------------

SCHEME, EXPIRY = "io.cncf.notary.signingScheme", "io.cncf.notary.expiry"


@pytest.mark.parametrize(
    "headers",
    [
        {"alg": "none"},
        {"alg": "ES384"},
        {"alg": "HS256"},
        {"alg": None},
        {"alg": ["ES256"]},
        {"crit": None},
        {"crit": []},
        {"crit": "io.cncf.notary.signingScheme"},
        {"crit": [SCHEME, SCHEME]},
        {"crit": [SCHEME, "io.example.must"], "io.example.must": 1},
        {"crit": [SCHEME, EXPIRY]},
        {"crit": [SCHEME, "alg"]},
        {EXPIRY: "2030-01-01T00:00:00Z"},
        {SCHEME: "notary.x509.other"},
        {SCHEME: None},
        {"cty": "application/json"},
        {"cty": None},
        {"io.cncf.notary.signingTime": None},
        {"io.cncf.notary.signingTime": "yesterday"},
        {"io.cncf.notary.signingTime": 1},
        {"io.cncf.notary.authenticSigningTime": "2026-11-24T16:00:00Z"},
        {"io.cncf.notary.verificationPlugin": "x"},
        {"crit": [SCHEME, "io.cncf.notary.verificationPlugin"], "io.cncf.notary.verificationPlugin": "x"},
    ],
    ids=str,
)
def test_jws_headers_that_are_not_understood_or_not_honoured_do_not_count(headers: dict[str, object]) -> None:
    refused(jws(KEY, CHAIN, target(IMAGE), headers))


def test_a_jws_header_that_is_not_critical_may_be_unknown() -> None:
    assert verify(jws(KEY, CHAIN, target(IMAGE), {"io.example.may": 1}))


@pytest.mark.parametrize(
    "edit",
    [
        lambda e: e.update(signature=""),
        lambda e: e.update(signature=e["signature"] + "="),
        lambda e: e.update(signature=e["signature"][:-4]),
        lambda e: e.update(payload=b64url(target(image("evil")))),
        lambda e: e.update(payload=e["payload"] + "="),
        lambda e: e.update(protected=b64url(b"{}")),
        lambda e: e.update(header={"x5c": []}),
        lambda e: e.update(header={"x5c": [b64(b"junk")]}),
        lambda e: e["header"].update(x5c=e["header"]["x5c"][1:]),
        lambda e: e["header"].update(x5c=e["header"]["x5c"] * 10),
        lambda e: e.update(signatures=[]),
        lambda e: e.pop("header"),
    ],
    ids=range(12),
)
def test_a_jws_that_is_edited_in_any_place_does_not_count(edit: Callable[[dict[str, Any]], object]) -> None:
    made = json.loads(jws(KEY, CHAIN, target(IMAGE)))
    edit(made)
    refused(dumps(made))


text = cbor.text_string


@pytest.mark.parametrize(
    ("headers", "critical"),
    [
        ([], ()),
        ([], ("other",)),
        ([(text("must"), cbor_int(1))], (SCHEME, "must")),
        ([(text(EXPIRY), cbor_time(NOW + timedelta(days=1)))], (SCHEME,)),
        ([(text(EXPIRY), cbor_int(2_000_000_000))], (SCHEME, EXPIRY)),
        ([(text(EXPIRY), cbor_time(NOW - timedelta(days=900)))], (SCHEME, EXPIRY)),
        ([(text(SCHEME), text("notary.x509"))], (SCHEME,)),
        ([(cbor_int(33), cbor.array())], (SCHEME,)),
        ([(cbor.byte_string(b"x"), cbor_int(1))], (SCHEME,)),
    ],
    ids=range(9),
)
def test_cose_headers_that_are_not_understood_or_not_honoured_do_not_count(
    headers: list[tuple[bytes, bytes]], critical: tuple[str, ...]
) -> None:
    refused(cose(KEY, CHAIN, target(IMAGE), headers, critical), COSE)


def test_cose_must_be_tagged_and_end_where_it_ends() -> None:
    good = cose(KEY, CHAIN, target(IMAGE))
    assert verify(good, COSE)
    refused(good + b"\0", COSE)
    refused(good[1:], COSE)
    refused(cose(KEY, CHAIN, target(IMAGE), tag=17), COSE)
    refused(good[:-1], COSE)
    for at in range(0, len(good), 97):
        refused(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], COSE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x18\x01",  # a number not in its shortest form
        b"\x19\x00\xff",
        b"\x9f\xff",  # indefinite lengths
        b"\x5f\xff",
        b"\xf9\x00\x00",  # floats
        b"\xf8\x20",  # other simple values
        b"\xa2\x01\x01\x01\x02",  # a key twice
        b"\xa1\xf5\x01",  # keys that are neither numbers nor texts
        b"\xa1\x40\x01",
        b"\x62\xff\xff",  # no UTF-8
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # a list of 2**64 - 1
        b"\xbb\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 100,  # deep
        b"\xc1" * 100,
        b"\x99\x10\x00" + b"\x00" * 4096,  # many
        b"\x00\x00",
    ],
    ids=lambda data: data[:6].hex(),
)
def test_cbor_that_is_not_plain_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(Refused):
        cbor.decode(data, "test")


def test_plain_cbor_is_read() -> None:
    data = cbor_map([(cbor_int(-7), cbor.array(text("a"), cbor.byte_string(b"b" * 300), b"\xf5"))])
    assert cbor.decode(data, "test") == {-7: ["a", b"b" * 300, True]}
    assert cbor.decode(b"\x1a\x00\x01\x00\x00", "test") == 65536


# --- chains -------------------------------------------------------------------------------------------------------


def signed_with(chain: list[x509.Certificate], key: PrivateKey = KEY) -> bytes:
    return jws(key, chain, target(IMAGE))


def test_the_chain_must_be_whole_ordered_and_end_in_its_root() -> None:
    assert verify(signed_with(CHAIN))
    refused(signed_with(CHAIN[:1]))
    refused(signed_with(CHAIN[:2]))
    refused(signed_with([CHAIN[0], CHAIN[2], CHAIN[1]]))
    refused(signed_with([*CHAIN, CHAIN[2]]))
    refused(signed_with([CHAIN[0], NotationCa().middle, CHAIN[2]]))


def test_a_chain_to_a_root_that_is_not_in_the_store_does_not_count() -> None:
    assert "trust store" in refused(signed_with(CHAIN), by=statement(trusted=NotationCa().root))


@pytest.mark.parametrize(
    "purposes",
    [
        (ExtendedKeyUsageOID.SERVER_AUTH,),
        (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH),
        (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.TIME_STAMPING),
        (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,),
        (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
    ],
)
def test_a_certificate_for_another_purpose_does_not_count(purposes: tuple[x509.ObjectIdentifier, ...]) -> None:
    assert "extended key usage" in refused(signed_with(CA.leaf(KEY, purposes=purposes)))


def test_a_certificate_with_other_key_usages_or_unknown_critical_extensions_does_not_count() -> None:
    refused(signed_with(CA.leaf(KEY, key_encipherment=True)))
    refused(signed_with(CA.leaf(KEY, crl_sign=True)))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    refused(signed_with(CA.leaf(KEY, more=[(unknown, True)])))
    assert verify(signed_with(CA.leaf(KEY, more=[(unknown, False)])))


def test_an_authority_is_no_signer() -> None:
    refused(jws(CA.middle_key, [CA.middle, CA.root], target(IMAGE)))


def test_a_signing_certificate_can_not_issue_another() -> None:
    evil = new_key()
    forged = CA._build(
        "builder",
        evil,
        "builder",
        KEY,
        [
            (x509.BasicConstraints(False, None), True),
            (CHAIN[0].extensions.get_extension_for_class(x509.KeyUsage).value, True),
        ],
    )
    refused(signed_with([forged, *CHAIN], evil))


# --- what the statement asks for ----------------------------------------------------------------------------------


def test_another_subject_of_the_same_authority_does_not_count() -> None:
    assert "trusted identity" in refused(signed_with(CA.leaf(KEY, "intern")))
    assert verify(signed_with(CA.leaf(KEY, "intern")), by=statement(identities=("*",)))
    assert verify(signed_with(CA.leaf(KEY, "intern")), by=statement(identities=("x509.subject: C=US, ST=WA, O=acme",)))


def test_an_expired_certificate_does_not_count_unless_that_is_only_logged() -> None:
    old = CA.leaf(KEY, end=NOW - timedelta(seconds=1))
    assert "not valid now" in refused(signed_with(old))
    permissive = verify(signed_with(old), by=statement("permissive"))
    assert "not enforced" in permissive.method
    assert permissive.expires is None


def test_an_expired_signature_does_not_count_unless_that_is_only_logged() -> None:
    raw = jws(KEY, CHAIN, target(IMAGE), expiry=NOW + timedelta(minutes=1))
    assert verify(raw).expires == NOW + timedelta(minutes=1)
    assert "expired" in refused(raw, now=NOW + timedelta(minutes=1))
    assert verify(raw, now=NOW + timedelta(minutes=2), by=statement("permissive"))
    refused(jws(KEY, CHAIN, target(IMAGE), expiry=NOW - timedelta(days=1)))


def test_audit_enforces_integrity_only() -> None:
    audit = statement("audit", trusted=NotationCa().root)
    assert "not enforced: authenticity" in verify(signed_with(CHAIN), by=audit).method
    refused(jws(KEY, CHAIN, target(image("other"))), by=audit)


def test_a_signing_authority_needs_a_store_of_its_own_and_is_judged_at_its_time() -> None:
    old = CA.leaf(KEY, end=NOW - timedelta(hours=2))
    headers = {
        SCHEME: "notary.x509.signingAuthority",
        "io.cncf.notary.signingTime": None,
        "io.cncf.notary.authenticSigningTime": "2026-11-24T12:00:00Z",
        "crit": [SCHEME, "io.cncf.notary.authenticSigningTime"],
    }
    raw = jws(KEY, old, target(IMAGE), headers)
    authority = statement(stores=("signingAuthority:acme",))
    assert verify(raw, by=authority)
    assert "trust store" in refused(raw)
    late = jws(KEY, old, target(IMAGE), {**headers, "io.cncf.notary.authenticSigningTime": "2026-11-24T16:30:00Z"})
    refused(late, by=authority)
    refused(jws(KEY, old, target(IMAGE), {**headers, "crit": [SCHEME]}), by=authority)


def test_revocation_that_can_not_be_asked_offline_refuses_where_it_is_enforced() -> None:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.test/")], None, None, None)
    chain = CA.leaf(KEY, more=[(x509.CRLDistributionPoints([point]), False)])
    assert "revoked" in refused(signed_with(chain))
    assert verify(signed_with(chain), by=statement(override={"revocation": "skip"}))


def test_a_timestamp_that_the_policy_asks_for_is_not_taken_as_given() -> None:
    stores = ("ca:acme", "tsa:acme")
    assert "timestamp authority" in refused(signed_with(CHAIN), by=statement(stores=stores))
    assert verify(signed_with(CHAIN), by=statement(stores=stores, verifyTimestamp="afterCertExpiry"))


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text_", "wanted"),
    [
        ("C=US, ST=WA, O=acme", {"C": "US", "ST": "WA", "O": "acme"}),
        ("C=US;S=WA;O=acme", {"C": "US", "ST": "WA", "O": "acme"}),
        (r"C=US,ST=WA,O=acme\, inc", {"C": "US", "ST": "WA", "O": "acme, inc"}),
        (r"C=US,ST=WA,O=\61cme\ ", {"C": "US", "ST": "WA", "O": "acme "}),
        ("C=US,ST=WA,O=\u00e9", {"C": "US", "ST": "WA", "O": "\u00e9"}),
    ],
)
def test_distinguished_names_are_read_by_rfc_4514(text_: str, wanted: dict[str, str]) -> None:
    assert parse_name(text_) == wanted


@pytest.mark.parametrize(
    "text_", ["", "C", "C=US", "C=US,ST=WA,O=a,O=b", 'C=US,ST=WA,O="a', "C=US,ST=WA,O=a+b", "=x", "C=US,ST=WA,O=\\"]
)
def test_what_is_no_distinguished_name_is_refused(text_: str) -> None:
    with pytest.raises(Refused):
        parse_name(text_)


def test_a_certificates_name_is_read_attribute_by_attribute() -> None:
    assert certificate_name(CHAIN[0]) == {"C": "US", "ST": "WA", "O": "acme", "CN": "builder"}
