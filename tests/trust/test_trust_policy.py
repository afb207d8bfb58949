"""The policy file: strict, whole or not at all, the most specific scope alone."""

from __future__ import annotations

import json

import pytest
from trust_kit import NOW, REPOSITORY, MemoryFiles, NotationCa, Sigstore, b64, certificate_pem, new_key, pem

from p2pdist.errors import ConfigError
from p2pdist.oci import Repository
from p2pdist.trust.policy import Policy, parse_policy
from p2pdist.trust.requirements import AcceptAnything, BundleSigned, GpgSigned, NotationSigned, Reject, SimpleSigned
from p2pdist.trust.signatures.simplesigning import FulcioTrust, KeyTrust, PkiTrust

KEY = pem(new_key())
ROOT = Sigstore()
CA = NotationCa()
FILES = {
    "k.pub": KEY,
    "k2.pub": pem(new_key()),
    "root.json": ROOT.trusted_root(),
    "ca.pem": certificate_pem(ROOT.ca),
    "ring.gpg": b"\x99\x01",
    "store/x509/ca/acme/root.crt": certificate_pem(CA.root),
}
ANYTHING = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}


def policy(document: object, files: dict[str, bytes] | None = None) -> Policy:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_policy(raw, MemoryFiles(FILES if files is None else files), "policy.json")


def one(requirement: object) -> object:
    return policy({"default": [requirement]}).default.requirements[0]


def refused(document: object) -> str:
    with pytest.raises(ConfigError) as caught:
        policy(document)
    return str(caught.value)


# --- scopes -------------------------------------------------------------------------------------------------------


def scoped(*scopes: str) -> Policy:
    return policy({"default": [REJECT], "transports": {"docker": {scope: [ANYTHING] for scope in scopes}}})


@pytest.mark.parametrize(
    ("scopes", "target", "wanted"),
    [
        ([], "1.0", "default"),
        ([""], "1.0", "docker"),
        (["", "*.test"], "1.0", "*.test"),
        (["*.test", "registry.test"], "1.0", "registry.test"),
        (["registry.test", "registry.test/app"], "1.0", "registry.test/app"),
        (["registry.test/app", "registry.test/app/one"], "1.0", "registry.test/app/one"),
        (["registry.test/app/one", "registry.test/app/one:1.0"], "1.0", "registry.test/app/one:1.0"),
        (["registry.test/app/one", "registry.test/app/one:1.0"], "2.0", "registry.test/app/one"),
        (["registry.test/app/one", f"registry.test/app/one@sha256:{'a' * 64}"], f"sha256:{'a' * 64}", "@"),
        (["registry.test/ap", "registry.test/app/on"], "1.0", "default"),
    ],
)
def test_the_most_specific_scope_wins_alone(scopes: list[str], target: str, wanted: str) -> None:
    scope = scoped(*scopes).scope_for(REPOSITORY, target)
    assert scope.name == wanted or (wanted == "@" and "@" in scope.name)


def test_a_wildcard_matches_every_parent_domain_and_no_port() -> None:
    chosen = scoped("*.b.test", "*.test").scope_of(Repository("a.b.test:5000", "x"))
    assert chosen.name == "*.b.test"
    assert scoped("*.b.test").scope_of(Repository("b.test", "x")).name == "default"


def test_docker_hub_is_matched_in_its_expanded_form_only() -> None:
    assert scoped("docker.io/library/alpine").scope_of(Repository.parse("alpine")).name == "docker.io/library/alpine"
    assert scoped("docker.io/alpine").scope_of(Repository.parse("alpine")).name == "default"


@pytest.mark.parametrize(
    "scope", ["a*.test", "*", "*.", "Registry.test", "registry.test/App", "registry.test/a:b:c", "/"]
)
def test_a_scope_that_can_never_match_refuses_the_file(scope: str) -> None:
    refused({"default": [REJECT], "transports": {"docker": {scope: [ANYTHING]}}})


def test_only_a_scope_that_is_open_for_every_tag_is_open_for_blobs() -> None:
    assert scoped("registry.test/app/one").open_for(REPOSITORY)
    tagged = {"registry.test/app/one": [ANYTHING], "registry.test/app/one:1.0": [REJECT]}
    assert not policy({"default": [REJECT], "transports": {"docker": tagged}}).open_for(REPOSITORY)
    assert not scoped("registry.test/app/two").open_for(REPOSITORY)


# --- strictness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"default": []}',
        b'{"default": [{"type": "reject"}], "more": 1}',
        b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject", "keyPath": "k.pub"}]}',
        b'{"default": [{"type": "unknown"}]}',
        b'{"default": [{"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}]}',
        b'{"default": [{}]}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"a.test": []}}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"a.test": [{"type": "reject"}], "a.test": []}}}',
        b'{"default": [{"type": "reject"}], "transports": {"atomic": {"": []}}}',
        b'\xef\xbb\xbf{"default": [{"type": "reject"}]}',
        b'{"default": [{"type": "reject"}]} x',
        b"[" * 100_000,
    ],
)
def test_anything_unknown_twice_or_malformed_refuses_the_whole_file(document: bytes) -> None:
    refused(document)


def test_other_transports_may_be_there_and_their_keys_are_not_read() -> None:
    files = MemoryFiles()
    other = {"docker-daemon": {"": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/nowhere"}]}}
    parse_policy(json.dumps({"default": [REJECT], "transports": other}).encode(), files, "p")
    assert files.asked == []


def test_a_message_names_the_place_in_the_file() -> None:
    text = refused({"default": [REJECT], "transports": {"docker": {"a.test": [REJECT, {"type": "nonsense"}]}}})
    assert "'a.test'" in text
    assert "[1]" in text
    assert "nonsense" in text


# --- requirements -------------------------------------------------------------------------------------------------


def test_simple_requirements() -> None:
    assert isinstance(one(ANYTHING), AcceptAnything)
    assert isinstance(one(REJECT), Reject)


@pytest.mark.parametrize(
    "keys",
    [
        {"keyPath": "k.pub"},
        {"keyPaths": ["k.pub", "k2.pub"]},
        {"keyData": b64(KEY)},
        {"keyDatas": [b64(KEY), b64(KEY)]},
    ],
)
def test_a_key_may_be_given_in_each_of_four_ways(keys: dict[str, object]) -> None:
    requirement = one({"type": "sigstoreSigned", **keys})
    assert isinstance(requirement, SimpleSigned)
    assert isinstance(requirement.trust, KeyTrust)
    assert len(requirement.trust.trusted) == (len(next(iter(keys.values()))) if "s" in next(iter(keys))[-1] else 1)


def _named(requirement: object) -> str:
    return str(requirement).replace(b64(KEY), "KEY")  # made anew in each process, and names must be the same in all


@pytest.mark.parametrize(
    "requirement",
    [
        {"type": "sigstoreSigned"},
        {"type": "sigstoreSigned", "keyPath": ""},
        {"type": "sigstoreSigned", "keyPaths": []},
        {"type": "sigstoreSigned", "keyPath": "k.pub", "keyData": b64(KEY)},
        {"type": "sigstoreSigned", "keyPath": "missing.pub"},
        {"type": "sigstoreSigned", "keyData": b64(b"nonsense")},
        {"type": "sigstoreSigned", "keyData": "not base64!"},
        {"type": "sigstoreSigned", "keyPath": "ca.pem"},
        {"type": "sigstoreSigned", "keyPath": "k.pub", "signedIdentity": {"type": "matchAny"}},
        {"type": "sigstoreSigned", "keyPath": "k.pub", "signedIdentity": {"type": "matchExact", "x": 1}},
        {"type": "sigstoreSigned", "keyPath": "k.pub", "signedIdentity": None},
        {"type": "sigstoreSigned", "fulcio": {"caPath": "ca.pem", "oidcIssuer": "i", "subjectEmail": "e@x"}},
        {"type": "sigstoreSigned", "fulcio": {"oidcIssuer": "i", "subjectEmail": "e@x"}, "rekorPublicKeyPath": "k.pub"},
        {
            "type": "sigstoreSigned",
            "fulcio": {"caPath": "ca.pem", "subjectEmail": "e@x"},
            "rekorPublicKeyPath": "k.pub",
        },
        {"type": "sigstoreSigned", "pki": {"caRootsPath": "ca.pem"}},
        {"type": "signedBy", "keyPath": "ring.gpg"},
        {"type": "signedBy", "keyType": "X509Certificates", "keyPath": "ring.gpg"},
        {"type": "signedBy", "keyType": "GPGKeys"},
        {"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nx")},
        {"type": "p2pdist.sigstoreBundle"},
        {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub", "signedIdentity": {"type": "matchRepository"}},
        {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub", "trustedRootPath": "root.json"},
        {"type": "p2pdist.sigstoreBundle", "trustedRootPath": "root.json"},
        {"type": "p2pdist.sigstoreBundle", "trustedRootPath": "root.json", "identity": {"subject": "s"}},
        {"type": "p2pdist.sigstoreBundle", "trustedRootPath": "k.pub", "identity": {"subject": "s", "issuer": "i"}},
        {"type": "p2pdist.sigstoreSimpleKeyless", "keyPath": "k.pub"},
        {"type": "p2pdist.attestation", "keyPath": "k.pub"},
        {"type": "p2pdist.attestation", "keyPath": "k.pub", "predicateType": "https://sigstore.dev/cosign/sign/v1"},
        {
            "type": "p2pdist.attestation",
            "keyPath": "k.pub",
            "predicateType": "p",
            "conditions": [{"pointer": "x", "equals": 1}],
        },
        {"type": "p2pdist.attestation", "keyPath": "k.pub", "predicateType": "p", "conditions": [{"pointer": "/x"}]},
        {
            "type": "p2pdist.attestation",
            "keyPath": "k.pub",
            "predicateType": "p",
            "conditions": [{"pointer": "/x", "equals": [1]}],
        },
        {"type": "p2pdist.notation"},
        {"type": "p2pdist.notation", "trustStorePath": "store", "trustStores": ["ca:acme"]},
        {
            "type": "p2pdist.notation",
            "trustStorePath": "store",
            "trustStores": ["ca:nobody"],
            "trustedIdentities": ["*"],
        },
        {
            "type": "p2pdist.notation",
            "trustStorePath": "store",
            "trustStores": ["ca:../acme"],
            "trustedIdentities": ["*"],
        },
        {
            "type": "p2pdist.notation",
            "trustStorePath": "store",
            "trustStores": ["other:acme"],
            "trustedIdentities": ["*"],
        },
    ],
    ids=_named,
)
def test_a_requirement_that_can_not_be_used_as_it_stands_refuses_the_file(requirement: object) -> None:
    refused({"default": [requirement]})


def test_every_other_requirement_type_is_read() -> None:
    fulcio = {"caPath": "ca.pem", "oidcIssuer": "i", "subjectEmail": "e@x"}
    simple = one({"type": "sigstoreSigned", "fulcio": fulcio, "rekorPublicKeyPath": "k.pub"})
    assert isinstance(simple, SimpleSigned)
    assert isinstance(simple.trust, FulcioTrust)
    pki = one({"type": "sigstoreSigned", "pki": {"caRootsPath": "ca.pem", "subjectEmail": "e@x"}})
    assert isinstance(pki, SimpleSigned)
    assert isinstance(pki.trust, PkiTrust)
    identity = {"subject": "s", "issuer": "i"}
    for type_ in ("p2pdist.sigstoreBundle", "p2pdist.sigstoreSimpleKeyless"):
        assert str(one({"type": type_, "trustedRootPath": "root.json", "identity": identity})).startswith(type_)
    assert isinstance(one({"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub", "predicateType": "p"}), BundleSigned)
    assert isinstance(one({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "ring.gpg"}), GpgSigned)
    notation = {"trustStorePath": "store", "trustStores": ["ca:acme"], "trustedIdentities": ["*"]}
    assert isinstance(one({"type": "p2pdist.notation", **notation}), NotationSigned)


# --- trusted_root.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: root.pop("mediaType"),
        lambda root: root.update(mediaType="application/json"),
        lambda root: root.update(tlogs=[]),
        lambda root: root.update(ctlogs=[]),
        lambda root: root.update(certificateAuthorities=[]),
        lambda root: root["tlogs"][0]["publicKey"].update(rawBytes="AAAA"),
        lambda root: root["tlogs"][0]["publicKey"].update(validFor={"start": "yesterday"}),
        lambda root: root["certificateAuthorities"][0]["certChain"].update(certificates=[]),
    ],
)
def test_a_trust_root_with_nothing_to_trust_refuses_the_file(edit: object) -> None:
    root = json.loads(ROOT.trusted_root())
    edit(root)  # type: ignore[operator]
    files = {**FILES, "root.json": json.dumps(root).encode()}
    with pytest.raises(ConfigError):
        policy(
            {
                "default": [
                    {
                        "type": "p2pdist.sigstoreBundle",
                        "trustedRootPath": "root.json",
                        "identity": {"subject": "s", "issuer": "i"},
                    }
                ]
            },
            files,
        )


# --- trustpolicy.json ---------------------------------------------------------------------------------------------

STATEMENT = {
    "name": "p",
    "registryScopes": ["registry.test/app/one"],
    "signatureVerification": {"level": "strict"},
    "trustStores": ["ca:acme"],
    "trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme, CN=builder"],
}


def trust_policy(*statements: dict[str, object]) -> NotationSigned:
    files = {**FILES, "tp.json": json.dumps({"version": "1.0", "trustPolicies": statements}).encode()}
    requirement = {"type": "p2pdist.notation", "trustPolicyPath": "tp.json", "trustStorePath": "store"}
    read = policy({"default": [requirement]}, files).default.requirements[0]
    assert isinstance(read, NotationSigned)
    return read


def test_an_exact_repository_wins_over_everything_and_nothing_else_is_covered() -> None:
    both = trust_policy(STATEMENT, {**STATEMENT, "name": "q", "registryScopes": ["*"]}).policy
    statement = both.statement_for(REPOSITORY)
    other = both.statement_for(Repository("registry.test", "app/two"))
    assert statement is not None
    assert other is not None
    assert (statement.name, other.name) == ("p", "q")
    assert trust_policy(STATEMENT).policy.statement_for(Repository("registry.test", "app/two")) is None


@pytest.mark.parametrize(
    "edit",
    [
        {"registryScopes": []},
        {"registryScopes": ["*", "registry.test/app/one"]},
        {"registryScopes": ["registry.test"]},
        {"registryScopes": ["registry.test/app/*"]},
        {"registryScopes": ["registry.test/app/one:1.0"]},
        {"signatureVerification": {"level": "lax"}},
        {"signatureVerification": {"level": "skip"}},
        {"signatureVerification": {"level": "strict", "override": {"integrity": "log"}}},
        {"signatureVerification": {"level": "strict", "override": {"authenticity": "skip"}}},
        {"signatureVerification": {"level": "strict", "override": {"colour": "log"}}},
        {"signatureVerification": {"level": "strict", "verifyTimestamp": "never"}},
        {"trustStores": []},
        {"trustedIdentities": []},
        {"trustedIdentities": ["*", "x509.subject: C=US, ST=WA, O=acme"]},
        {"trustedIdentities": ["x509.subject: C=US, O=acme"]},
        {"trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme, O=other"]},
        {"trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme+CN=x"]},
        {"trustedIdentities": ["x509.subject: C=US, ST=WA, O=#1234"]},
        {"trustedIdentities": ["x509.subject: C=US, ST=WA, O=acme", "x509.subject: C=US, ST=WA, O=acme, CN=x"]},
        {"trustedIdentities": ["somebody"]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_trust_policy_that_breaks_the_specification_refuses_the_file(edit: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        trust_policy({**STATEMENT, **edit})


def test_scopes_and_names_may_be_used_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        trust_policy(STATEMENT, {**STATEMENT, "registryScopes": ["*"]})
    with pytest.raises(ConfigError, match="twice"):
        trust_policy(STATEMENT, {**STATEMENT, "name": "q"})


def test_a_leaf_in_a_trust_store_is_refused() -> None:
    leaf = CA.leaf(new_key())[0]
    files = {**FILES, "store/x509/ca/acme/leaf.crt": certificate_pem(leaf)}
    requirement = {
        "type": "p2pdist.notation",
        "trustStorePath": "store",
        "trustStores": ["ca:acme"],
        "trustedIdentities": ["*"],
    }
    with pytest.raises(ConfigError, match="neither an authority"):
        policy({"default": [requirement]}, files)
    assert leaf.not_valid_after_utc > NOW
