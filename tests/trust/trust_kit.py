"""A signer's workshop for tests: images, keys, every form of signature, and a registry in memory to put them in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from p2pdist.errors import ConfigError, UpstreamDenied, UpstreamError, UpstreamUnreachable
from p2pdist.oci import OCI_INDEX, OCI_MANIFEST, Digest, Index, Manifest, Repository, parse_manifest
from p2pdist.trust import ReferrersPage
from p2pdist.trust.notation import cbor

NOW = datetime(2026, 11, 24, 17, 0, tzinfo=UTC)
REPOSITORY = Repository("registry.test", "app/one")
SIGN_V1 = "https://sigstore.dev/cosign/sign/v1"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


# --- images -------------------------------------------------------------------------------------------------------


def descriptor(media_type: str, data: bytes, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


def image(text: str = "hello", layers: int = 1) -> Manifest:
    config = dumps({"architecture": "amd64", "os": "linux", "config": {"Cmd": [text]}})
    blobs = [f"{text} layer {number}".encode() for number in range(layers)]
    raw = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob) for blob in blobs],
        }
    )
    manifest = parse_manifest(raw, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    return manifest


def index(*children: Manifest | Index) -> Index:
    raw = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [descriptor(child.media_type, child.raw) for child in children],
        }
    )
    parsed = parse_manifest(raw, OCI_INDEX)
    assert isinstance(parsed, Index)
    return parsed


# --- keys ---------------------------------------------------------------------------------------------------------

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(key: PrivateKey, data: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(_HASHES[key.curve.name]()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


# --- cosign -------------------------------------------------------------------------------------------------------

SIMPLE_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"


def payload(
    manifest: Manifest | Index, reference: str = str(REPOSITORY), type_: str = "cosign container image signature"
) -> bytes:
    return dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": str(manifest.digest)},
                "type": type_,
            },
            "optional": None,
        }
    )


def simple(key: PrivateKey, data: bytes) -> tuple[bytes, dict[str, str]]:
    return data, {"dev.cosignproject.cosign/signature": b64(sign(key, data))}


def signature_manifest(
    layers: Iterable[tuple[bytes, Mapping[str, str]]], media_type: str = SIMPLE_TYPE
) -> tuple[bytes, list[bytes]]:
    """A `.sig` (or `.att`) manifest, and the blobs it needs."""
    layers = list(layers)
    config = dumps({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}})
    raw = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor(media_type, data, annotations=dict(notes)) for data, notes in layers],
        }
    )
    return raw, [config, *(data for data, _ in layers)]


# --- sigstore bundles ---------------------------------------------------------------------------------------------

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def statement(
    manifest: Manifest | Index, predicate_type: str = SIGN_V1, predicate: object = None, **more: object
) -> bytes:
    return dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": manifest.digest.hex}}],
            "predicateType": predicate_type,
            "predicate": {} if predicate is None else predicate,
            **more,
        }
    )


def pae(data: bytes, type_: bytes = b"application/vnd.in-toto+json") -> bytes:
    return b"DSSEv1 %d %b %d %b" % (len(type_), type_, len(data), data)


def envelope(key: PrivateKey, data: bytes) -> dict[str, Any]:
    return {
        "payload": b64(data),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": b64(sign(key, pae(data)))}],
    }


def bundle(key: PrivateKey, data: bytes) -> dict[str, Any]:
    return {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": "x"}},
        "dsseEnvelope": envelope(key, data),
    }


def referrer(
    subject: Manifest | Index,
    data: bytes,
    layer_type: str = BUNDLE_TYPE,
    artifact_type: str | None = BUNDLE_TYPE,
    **more: object,
) -> tuple[bytes, list[bytes]]:
    """A manifest that attaches `data` to `subject`, and the blobs it needs."""
    body: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [descriptor(layer_type, data)],
        "subject": descriptor(subject.media_type, subject.raw),
        **more,
    }
    if artifact_type is not None:
        body["artifactType"] = artifact_type
    return dumps(body), [b"{}", data]


# --- keyless: a Fulcio, a certificate transparency log and a Rekor of one's own -----------------------------------

ISSUER = "https://token.test"
SUBJECT = "https://ci.test/acme/release.yml@refs/heads/main"
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def _der(tag: int, data: bytes) -> bytes:
    size = len(data)
    head = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + struct.pack(">H", size)
    return bytes([tag]) + head + data


@dataclass
class Sigstore:
    """Everything that a trusted_root.json trusts, with the private keys."""

    ca_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    ct_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    log_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test fulcio")])
        self.ca = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.ca_key.public_key())
            .serial_number(1)
            .not_valid_before(NOW - timedelta(days=100))
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(_key_usage(cert_sign=True), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca_key.public_key()), False)
            .sign(self.ca_key, hashes.SHA256())
        )

    def trusted_root(self) -> bytes:
        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, object]:
            return {
                "publicKey": {"rawBytes": b64(spki(key)), "validFor": {"start": "2025-01-01T00:00:00Z"}},
                "logId": {"keyId": b64(hashlib.sha256(spki(key)).digest())},
            }

        raw = self.ca.public_bytes(serialization.Encoding.DER)
        return dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log_key)],
                "ctlogs": [log(self.ct_key)],
                "certificateAuthorities": [{"certChain": {"certificates": [{"rawBytes": b64(raw)}]}}],
                "timestampAuthorities": [],
            }
        )

    def certificate(
        self,
        key: PrivateKey,
        *,
        subject: str = SUBJECT,
        issuer: str = ISSUER,
        purpose: ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
        sct: bool = True,
        at: datetime = NOW,
    ) -> x509.Certificate:
        name = (
            x509.RFC822Name(subject)
            if "@" in subject and ":" not in subject
            else x509.UniformResourceIdentifier(subject)
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.ca.subject)
            .public_key(key.public_key())
            .serial_number(int.from_bytes(hashlib.sha256(spki(key)).digest()[:8], "big") | 1)
            .not_valid_before(at - timedelta(minutes=1))
            .not_valid_after(at + timedelta(minutes=9))
            .add_extension(x509.SubjectAlternativeName([name]), True)
            .add_extension(_key_usage(signs=True), True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key()), False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, _der(0x0C, issuer.encode())), False)
        )
        if not sct:
            return builder.sign(self.ca_key, hashes.SHA256())
        # The log signs the certificate as it would be without its signature: what `cryptography` reconstructs.
        blank = builder.add_extension(x509.UnrecognizedExtension(_SCT_LIST, self._sct_list(b"", at)), False)
        tbs = blank.sign(self.ca_key, hashes.SHA256()).tbs_precertificate_bytes
        extension = x509.UnrecognizedExtension(_SCT_LIST, self._sct_list(tbs, at))
        return builder.add_extension(extension, False).sign(self.ca_key, hashes.SHA256())

    def _sct_list(self, tbs: bytes, at: datetime) -> bytes:
        stamp = int(at.timestamp() * 1000)
        signed = struct.pack(">BBQH", 0, 0, stamp, 1) + hashlib.sha256(spki(self.ca_key)).digest()
        signed += len(tbs).to_bytes(3, "big") + tbs + struct.pack(">H", 0)
        signature = sign(self.ct_key, signed)
        log_id = hashlib.sha256(spki(self.ct_key)).digest()
        sct = struct.pack(">B32sQHBBH", 0, log_id, stamp, 0, 4, 3, len(signature)) + signature
        return _der(0x04, struct.pack(">HH", len(sct) + 2, len(sct)) + sct)

    def entry(self, body: bytes, at: datetime = NOW, others: int = 4) -> dict[str, Any]:
        """A log entry as a bundle has it: signed time, and inclusion in a tree with `others` before it."""
        index_, log_id = others, hashlib.sha256(spki(self.log_key)).digest()
        leaves = [hashlib.sha256(b"\x00other %d" % number).digest() for number in range(others)]
        leaves.append(hashlib.sha256(b"\x00" + body).digest())
        root, path = _merkle(leaves, index_)
        note = f"log.test - 1\n{len(leaves)}\n{b64(root)}\n"
        checkpoint = f"{note}\n\u2014 log.test {b64(log_id[:4] + sign(self.log_key, note.encode()))}\n"
        canonical = {
            "body": b64(body),
            "integratedTime": int(at.timestamp()),
            "logID": log_id.hex(),
            "logIndex": index_,
        }
        promise = sign(self.log_key, json.dumps(canonical, separators=(",", ":"), sort_keys=True).encode())
        return {
            "logIndex": str(index_),
            "logId": {"keyId": b64(log_id)},
            "kindVersion": {"kind": json.loads(body)["kind"], "version": "0.0.1"},
            "integratedTime": str(int(at.timestamp())),
            "inclusionPromise": {"signedEntryTimestamp": b64(promise)},
            "inclusionProof": {
                "logIndex": str(index_),
                "rootHash": b64(root),
                "treeSize": str(len(leaves)),
                "hashes": [b64(item) for item in path],
                "checkpoint": {"envelope": checkpoint},
            },
            "canonicalizedBody": b64(body),
        }

    def bundle(
        self,
        data: bytes,
        certificate: x509.Certificate | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        at: datetime = NOW,
    ) -> dict[str, Any]:
        key = key or new_key()
        certificate = certificate or self.certificate(key)
        made = envelope(key, data)
        body = dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()},
                    "signatures": [
                        {"signature": made["signatures"][0]["sig"], "verifier": b64(certificate_pem(certificate))}
                    ],
                },
            }
        )
        raw = certificate.public_bytes(serialization.Encoding.DER)
        return {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"certificate": {"rawBytes": b64(raw)}, "tlogEntries": [self.entry(body, at)]},
            "dsseEnvelope": made,
        }

    def simple(
        self, data: bytes, certificate: x509.Certificate | None = None, key: PrivateKey | None = None
    ) -> tuple[bytes, dict[str, str]]:
        key = key or new_key()
        certificate = certificate or self.certificate(key)
        signature = sign(key, data)
        body = dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "hashedrekord",
                "spec": {
                    "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}},
                    "signature": {
                        "content": b64(signature),
                        "publicKey": {"content": b64(certificate_pem(certificate))},
                    },
                },
            }
        )
        entry = self.entry(body)
        log_bundle = {
            "SignedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
            "Payload": {
                "body": b64(body),
                "integratedTime": int(entry["integratedTime"]),
                "logIndex": int(entry["logIndex"]),
                "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
            },
        }
        return data, {
            "dev.cosignproject.cosign/signature": b64(signature),
            "dev.sigstore.cosign/certificate": certificate_pem(certificate).decode(),
            "dev.sigstore.cosign/bundle": json.dumps(log_bundle),
        }


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _merkle(leaves: list[bytes], wanted: int) -> tuple[bytes, list[bytes]]:
    if len(leaves) == 1:
        return leaves[0], []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = leaves[:split], leaves[split:]
    if wanted < split:
        (mine, path), (other, _) = _merkle(left, wanted), _merkle(right, 0)
        return hashlib.sha256(b"\x01" + mine + other).digest(), [*path, other]
    (mine, path), (other, _) = _merkle(right, wanted - split), _merkle(left, 0)
    return hashlib.sha256(b"\x01" + other + mine).digest(), [*path, other]


def _key_usage(*, signs: bool = False, cert_sign: bool = False, **more: bool) -> x509.KeyUsage:
    values = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only"),
        False,
    )
    return x509.KeyUsage(digital_signature=signs, key_cert_sign=cert_sign, decipher_only=False, **{**values, **more})


# --- notation -----------------------------------------------------------------------------------------------------

NOTATION_TYPE = "application/vnd.cncf.notary.signature"
_ALGORITHMS = {
    "secp256r1": ("ES256", -7),
    "secp384r1": ("ES384", -35),
    "secp521r1": ("ES512", -36),
    2048: ("PS256", -37),
    3072: ("PS384", -38),
}


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "WA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "acme"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


@dataclass
class NotationCa:
    """A root with one intermediate; makes signing certificates and envelopes."""

    root_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    middle_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.root = self._authority("root", self.root_key, "root", self.root_key, None)
        self.middle = self._authority("middle", self.middle_key, "root", self.root_key, 0)

    def _authority(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        by: str,
        by_key: ec.EllipticCurvePrivateKey,
        below: int | None,
    ) -> x509.Certificate:
        return self._build(
            name, key, by, by_key, [(x509.BasicConstraints(True, below), True), (_key_usage(cert_sign=True), True)]
        )

    def _build(
        self,
        name: str,
        key: PrivateKey,
        by: str,
        by_key: PrivateKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
        start: datetime = NOW - timedelta(days=10),
        end: datetime = NOW + timedelta(days=10),
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(by))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(by_key, hashes.SHA256())

    def leaf(
        self,
        key: PrivateKey,
        common: str = "builder",
        *,
        purposes: Iterable[ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,),
        end: datetime = NOW + timedelta(days=10),
        more: Iterable[tuple[x509.ExtensionType, bool]] = (),
        **usage: bool,
    ) -> list[x509.Certificate]:
        """A chain: leaf first, root last."""
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(False, None), True),
            (_key_usage(signs=True, **usage), True),
            (x509.ExtendedKeyUsage(purposes), False),
            *more,
        ]
        leaf = self._build(common, key, "middle", self.middle_key, extensions, end=end)
        return [leaf, self.middle, self.root]

    def store(self, directory: Path, name: str = "acme", type_: str = "ca") -> Path:
        """Write the root into a trust store; its base directory."""
        place = directory / "x509" / type_ / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "root.crt").write_bytes(certificate_pem(self.root))
        return directory


def target(manifest: Manifest | Index, **more: object) -> bytes:
    return dumps(
        {
            "targetArtifact": {
                "mediaType": manifest.media_type,
                "digest": str(manifest.digest),
                "size": len(manifest.raw),
                **more,
            }
        }
    )


def _raw_signature(key: PrivateKey, data: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(sign(key, data))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    assert isinstance(key, rsa.RSAPrivateKey)
    hash_ = {2048: hashes.SHA256, 3072: hashes.SHA384}[key.key_size]()
    return key.sign(data, padding.PSS(padding.MGF1(hash_), hash_.digest_size), hash_)


def _algorithm(key: PrivateKey) -> tuple[str, int]:
    return _ALGORITHMS[key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else key.key_size]  # type: ignore[union-attr]


def jws(
    key: PrivateKey,
    chain: list[x509.Certificate],
    data: bytes,
    headers: Mapping[str, object] | None = None,
    expiry: datetime | None = None,
) -> bytes:
    protected: dict[str, object] = {
        "alg": _algorithm(key)[0],
        "cty": "application/vnd.cncf.notary.payload.v1+json",
        "crit": ["io.cncf.notary.signingScheme"],
        "io.cncf.notary.signingScheme": "notary.x509",
        "io.cncf.notary.signingTime": "2026-11-24T16:00:00Z",
    }
    if expiry is not None:
        protected["crit"] = ["io.cncf.notary.signingScheme", "io.cncf.notary.expiry"]
        protected["io.cncf.notary.expiry"] = expiry.strftime("%Y-%m-%dT%H:%M:%SZ")
    protected |= headers or {}
    protected = {name: value for name, value in protected.items() if value is not None}
    head, body = b64url(dumps(protected)), b64url(data)
    return dumps(
        {
            "payload": body,
            "protected": head,
            "header": {"x5c": [b64(one.public_bytes(serialization.Encoding.DER)) for one in chain]},
            "signature": b64url(_raw_signature(key, f"{head}.{body}".encode())),
        }
    )


def cbor_int(number: int) -> bytes:
    return cbor._head(0, number) if number >= 0 else cbor._head(1, -1 - number)


def cbor_map(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    pairs = list(pairs)
    return cbor._head(5, len(pairs)) + b"".join(key + value for key, value in pairs)


def cbor_time(at: datetime) -> bytes:
    return cbor._head(6, 1) + cbor_int(int(at.timestamp()))


def cose(
    key: PrivateKey,
    chain: list[x509.Certificate],
    data: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    critical: Iterable[str] = ("io.cncf.notary.signingScheme",),
    tag: int = 18,
) -> bytes:
    text = cbor.text_string
    protected = cbor_map(
        [
            (cbor_int(1), cbor_int(_algorithm(key)[1])),
            (cbor_int(2), cbor.array(*(text(name) for name in critical))),
            (cbor_int(3), text("application/vnd.cncf.notary.payload.v1+json")),
            (text("io.cncf.notary.signingTime"), cbor_time(NOW)),
            (text("io.cncf.notary.signingScheme"), text("notary.x509")),
            *headers,
        ]
    )
    signed = cbor.array(text("Signature1"), cbor.byte_string(protected), cbor.byte_string(b""), cbor.byte_string(data))
    certificates = [cbor.byte_string(one.public_bytes(serialization.Encoding.DER)) for one in chain]
    return cbor._head(6, tag) + cbor.array(
        cbor.byte_string(protected),
        cbor_map([(cbor_int(33), cbor.array(*certificates))]),
        cbor.byte_string(data),
        cbor.byte_string(_raw_signature(key, signed)),
    )


# --- files and registries -----------------------------------------------------------------------------------------


class MemoryFiles:
    """`Files` in memory."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.asked: list[str] = []

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self.files:
            raise ConfigError(f"{path} can't be read: no such file")
        return self.files[path]

    def names(self, path: str) -> list[str]:
        return sorted(name[len(path) + 1 :] for name in self.files if name.startswith(path + "/"))


class MemorySource:
    """A registry in memory that counts what it is asked. `broken`: targets that it fails for."""

    def __init__(self, *, referrers_api: bool = True) -> None:
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.pages: dict[str, list[bytes]] = {}
        self.stores: dict[str, bytes] = {}
        self.referrers_api = referrers_api
        self.broken: set[str] = set()
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.behalf: list[str] = []
        self.denies = ""  # everybody but whoever has this authorization

    def on_behalf_of(self, authorization: str) -> MemorySource:
        self.behalf.append(authorization)
        return self

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.hanging:
            await asyncio.Event().wait()
        if what in self.broken:
            raise UpstreamUnreachable(f"{what}: no route")
        if self.denies and self.denies not in self.behalf:
            raise UpstreamDenied(f"{what}: 401")

    async def manifest(self, repository: Repository, target: str, limit: int) -> bytes | None:
        await self._ask(target)
        return self.manifests.get(target)

    async def blob(self, repository: Repository, digest: Digest, size: int) -> bytes:
        await self._ask(str(digest))
        if str(digest) not in self.blobs:
            raise UpstreamError(f"{digest}: 404", status=404)
        return self.blobs[str(digest)]

    async def referrers(
        self, repository: Repository, digest: Digest, page: str | None, limit: int
    ) -> ReferrersPage | None:
        await self._ask(f"referrers {page or 1}")
        if not self.referrers_api:
            return None
        pages = self.pages.get(str(digest), [dumps({"schemaVersion": 2, "manifests": []})])
        number = int(page or 1)
        return ReferrersPage(pages[number - 1], str(number + 1) if number < len(pages) else None)

    async def lookaside(self, base: str, path: str, limit: int) -> bytes | None:
        await self._ask(f"{base}/{path}")
        return self.stores.get(f"{base}/{path}")

    # --- filling it ---

    def add_blobs(self, blobs: Iterable[bytes]) -> None:
        self.blobs.update({str(Digest.of(blob)): blob for blob in blobs})

    def tag(self, subject: Manifest | Index, suffix: str, raw: bytes, blobs: Iterable[bytes]) -> None:
        self.manifests[f"sha256-{subject.digest.hex}{suffix}"] = raw
        self.add_blobs(blobs)

    def sign_simple(self, subject: Manifest | Index, *layers: tuple[bytes, Mapping[str, str]]) -> None:
        self.tag(subject, ".sig", *signature_manifest(layers))

    def attach(self, subject: Manifest | Index, *referrers: tuple[bytes, list[bytes]], typed: bool = True) -> None:
        """List `referrers` (as `referrer` makes them) on one page, or under the fallback tag."""
        listed = []
        for raw, blobs in referrers:
            self.manifests[str(Digest.of(raw))] = raw
            self.add_blobs(blobs)
            entry = descriptor(OCI_MANIFEST, raw)
            if typed and "artifactType" in json.loads(raw):
                entry["artifactType"] = json.loads(raw)["artifactType"]
            listed.append(entry)
        page = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
        if self.referrers_api:
            self.pages.setdefault(str(subject.digest), []).append(page)
        else:
            self.manifests[f"sha256-{subject.digest.hex}"] = page

    def list_raw(self, subject: Manifest | Index, raw: bytes, blobs: Iterable[bytes]) -> None:
        """List a manifest that may be malformed, on the one page."""
        self.manifests[str(Digest.of(raw))] = raw
        self.add_blobs(blobs)
        page = json.loads(self.pages.get(str(subject.digest), [b'{"manifests": []}'])[0])
        page["manifests"].append(descriptor(OCI_MANIFEST, raw, artifactType=BUNDLE_TYPE))
        self.pages[str(subject.digest)] = [dumps(page)]
