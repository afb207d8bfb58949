"""What is fuzzed: every parser of what others wrote, each as bytes in, and nothing but a refusal (or a value) out.

`run(data)`: the first byte chooses the target. Both fuzzers use these: hypothesis, and the coverage-guided one. The
keys that are trusted have signed one image; what is judged is another. So every acceptance is a hole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import serialization
from trust_kit import (
    ISSUER,
    NOW,
    REPOSITORY,
    SIMPLE_TYPE,
    SUBJECT,
    MemoryFiles,
    NotationCa,
    Sigstore,
    bundle,
    certificate_pem,
    cose,
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
    statement,
    target,
)

from p2pdist.errors import ConfigError, InputError
from p2pdist.oci import Digest, parse_manifest
from p2pdist.trust import encodings
from p2pdist.trust.collector import Collector
from p2pdist.trust.fields import Fields
from p2pdist.trust.identity import MatchRepository, Name
from p2pdist.trust.keys import TrustedKey
from p2pdist.trust.notation import cbor, verify_notation
from p2pdist.trust.notation.names import parse_name
from p2pdist.trust.notation.trustpolicy import judged
from p2pdist.trust.policy import parse_policy
from p2pdist.trust.referrers import _descriptors
from p2pdist.trust.refusal import Refused
from p2pdist.trust.shapes import is_no_archive, signature_object
from p2pdist.trust.signatures import rekor
from p2pdist.trust.signatures.bundle import verify_bundle, verify_dsse
from p2pdist.trust.signatures.certificates import load_der, oidc_issuer, subjects, verify_sct
from p2pdist.trust.signatures.gpg import _result, dearmored
from p2pdist.trust.signatures.keyless import Identity, KeylessTrust
from p2pdist.trust.signatures.simplesigning import KeyTrust, verify_simple
from p2pdist.trust.signatures.trustedroot import parse_trusted_root
from p2pdist.trust.source import ReferrersPage
from p2pdist.trust.upstream import next_query

KEY = new_key()
TRUSTED = (TrustedKey.from_pem(pem(KEY), "k"),)
SIGSTORE = Sigstore()
KEYLESS = KeylessTrust(parse_trusted_root(SIGSTORE.trusted_root(), "root"), Identity(SUBJECT, ISSUER))
CA = NotationCa()
SIGNED, EVIL = image("signed"), image("evil")
PREDICATE = "https://sigstore.dev/cosign/sign/v1"
FILES = MemoryFiles({"k.pub": pem(KEY), "root.json": SIGSTORE.trusted_root(), "ca.pem": certificate_pem(SIGSTORE.ca)})


class Accepted(AssertionError):
    """Something that nobody signed was accepted."""


def _simple(data: bytes) -> None:
    signed, annotations = simple(KEY, payload(SIGNED))
    verify_simple(data, annotations, EVIL.raw, Name(REPOSITORY, "1"), KeyTrust(TRUSTED), MatchRepository(), NOW)
    raise Accepted(signed)


def _simple_annotations(data: bytes) -> None:
    names = ("dev.cosignproject.cosign/signature", "dev.sigstore.cosign/certificate", "dev.sigstore.cosign/bundle")
    values = data.decode("utf-8", "replace").split("\0")
    annotations = dict(zip(names, [*values, "", "", ""], strict=False))
    verify_simple(payload(EVIL), annotations, EVIL.raw, Name(REPOSITORY, "1"), KEYLESS, MatchRepository(), NOW)
    raise Accepted


def _bundle(data: bytes) -> None:
    verify_bundle(data, EVIL.raw, TRUSTED, PREDICATE)
    raise Accepted


def _keyless(data: bytes) -> None:
    verify_bundle(data, EVIL.raw, KEYLESS, PREDICATE)
    raise Accepted


def _dsse(data: bytes) -> None:
    verify_dsse(data, EVIL.raw, TRUSTED, PREDICATE, ())
    raise Accepted


def _notation(type_: str) -> Callable[[bytes], None]:
    document = {"trustStores": ["ca:a"], "trustedIdentities": ["*"]}
    by = judged("p", ("*",), Fields(document, "p", ConfigError), None, lambda _type, _name: (CA.root,))

    def target_(data: bytes) -> None:
        verify_notation(data, type_, EVIL.raw, EVIL.media_type, by, NOW)
        raise Accepted

    return target_


def _certificate(data: bytes) -> None:
    certificate = load_der(data, "certificate")
    for reader in (oidc_issuer, subjects):
        try:
            reader(certificate)
        except Refused:
            continue
    verify_sct(certificate, SIGSTORE.ca, KEYLESS.root.ct_logs)
    if certificate.tbs_precertificate_bytes != _CERTIFICATE.tbs_precertificate_bytes:  # what the log signed
        raise Accepted


def _log_body(data: bytes) -> None:
    for check in (rekor.check_dsse, rekor.check_hashedrekord):
        try:
            check(data, b"never signed", b"nobody", b"nothing")
        except Refused:
            continue
        raise Accepted


def _checkpoint(data: bytes) -> None:
    entry = rekor.Entry(b"nothing", 1, 0, KEYLESS.root.logs[0].log_id)
    proof = rekor.InclusionProof(0, 1, b"r" * 32, (), data.decode("utf-8", "replace"))
    rekor._verify_checkpoint(proof, KEYLESS.root.logs[0])
    raise Accepted(entry)


def _policy(data: bytes) -> None:
    read = parse_policy(data, FILES, "policy")
    read.scope_for(REPOSITORY, "1.0")


def _trusted_root(data: bytes) -> None:
    parse_trusted_root(data, "root")


def _referrers(data: bytes) -> None:
    collector = Collector(None, REPOSITORY, EVIL.digest)  # type: ignore[arg-type]  # nothing is asked
    _descriptors(collector, ReferrersPage(data), "page")


def _shapes(data: bytes) -> None:
    manifest = parse_manifest(data, None)
    for name in ("1.0", str(Digest.of(data)), f"sha256-{'a' * 64}.sig", f"sha256-{'a' * 64}"):
        exempt = signature_object(name, manifest)
        for layer in exempt.read_first if exempt is not None else ():
            is_no_archive(layer, data)


def _texts(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    encodings.pem_block(data, ("CERTIFICATE",), "pem")
    for reader in (encodings.base64_bytes, encodings.base64url_bytes, encodings.time_rfc3339):
        reader(text, "text")


def _names(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    next_query(text)
    Name.parse(text)
    parse_name(text)


def _gpg(data: bytes) -> None:
    dearmored(data, "keyring")
    _result(b"payload", data, 0)


TARGETS: list[Callable[[bytes], None]] = [
    _simple,
    _simple_annotations,
    _bundle,
    _keyless,
    _dsse,
    _notation("application/jose+json"),
    _notation("application/cose"),
    lambda data: _ignored(cbor.decode(data, "cbor")),
    _certificate,
    _log_body,
    _checkpoint,
    _policy,
    _trusted_root,
    _referrers,
    _shapes,
    _texts,
    _names,
    _gpg,
]


def _ignored(_value: object) -> None:
    return None


def run(data: bytes) -> None:
    """One input; whatever it raises besides a refusal is a hole."""
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except (Refused, InputError):
        return


_CHAIN = CA.leaf(KEY)
_CERTIFICATE = SIGSTORE.certificate(new_key())
_LOGGED = SIGSTORE.bundle(statement(SIGNED))
_ENTRY = _LOGGED["verificationMaterial"]["tlogEntries"][0]
_POLICY: dict[str, Any] = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {
            "": [{"type": "insecureAcceptAnything"}],
            "registry.test": [
                {"type": "sigstoreSigned", "keyPath": "k.pub", "signedIdentity": {"type": "matchExact"}},
                {"type": "p2pdist.sigstoreBundle", "keyPath": "k.pub", "predicateType": "p"},
                {
                    "type": "p2pdist.attestation",
                    "trustedRootPath": "root.json",
                    "identity": {"subject": "s", "issuer": "i"},
                    "predicateType": "p",
                    "conditions": [{"pointer": "/a/0", "equals": 1}],
                },
            ],
        }
    },
}


def seeds() -> list[bytes]:
    """A valid input of each target, so that the fuzzers start behind the first checks."""
    _, annotations = SIGSTORE.simple(payload(SIGNED))
    good = [
        payload(SIGNED),
        "\0".join(annotations.values()).encode(),
        dumps(bundle(KEY, statement(SIGNED))),
        dumps(_LOGGED),
        dumps(bundle(KEY, statement(SIGNED))["dsseEnvelope"]),
        jws(KEY, _CHAIN, target(SIGNED)),
        cose(KEY, _CHAIN, target(SIGNED)),
        cose(KEY, _CHAIN, target(SIGNED)),
        _CERTIFICATE.public_bytes(serialization.Encoding.DER),
        encodings.base64_bytes(_ENTRY["canonicalizedBody"], "body"),
        _ENTRY["inclusionProof"]["checkpoint"]["envelope"].encode(),
        dumps(_POLICY),
        SIGSTORE.trusted_root(),
        index(SIGNED).raw,
        signature_manifest([simple(KEY, payload(SIGNED))], SIMPLE_TYPE)[0],
        certificate_pem(CA.root),
        b"C=US, ST=WA, O=acme, CN=a",
        b"[GNUPG:] NEWSIG\n[GNUPG:] PLAINTEXT 62 0\n[GNUPG:] GOODSIG A b\n[GNUPG:] VALIDSIG "
        + b"A" * 40
        + b" 2026-01-01 1 0 4 0 1 10 00 "
        + b"A" * 40
        + b"\n",
    ]
    good.append(referrer(SIGNED, b"{}")[0])
    return [bytes([number % len(TARGETS)]) + data for number, data in enumerate(good)]
