"""Requirement objects of a policy file, read strictly, with the keys and certificates that they name."""

from __future__ import annotations

import re
from typing import Protocol

from cryptography import x509

from p2pdist.errors import ConfigError
from p2pdist.trust import encodings
from p2pdist.trust.evidence import Form
from p2pdist.trust.fields import Fields
from p2pdist.trust.identity import parse_signed_identity
from p2pdist.trust.keys import TrustedKey
from p2pdist.trust.notation.trustpolicy import Statement, TrustPolicy, judged, parse_trust_policy
from p2pdist.trust.refusal import Refused, refusing
from p2pdist.trust.requirements import (
    AcceptAnything,
    BundleSigned,
    GpgSigned,
    NotationSigned,
    Reject,
    Requirement,
    SimpleSigned,
)
from p2pdist.trust.signatures.certificates import Authority
from p2pdist.trust.signatures.gpg import dearmored
from p2pdist.trust.signatures.keyless import Identity, KeylessTrust
from p2pdist.trust.signatures.simplesigning import FulcioTrust, KeyTrust, PkiTrust, SimpleTrust
from p2pdist.trust.signatures.statement import COSIGN_SIGN, Condition
from p2pdist.trust.signatures.trustedroot import parse_trusted_root


class Files(Protocol):
    """The files that a policy names, relative to its base. Both raise ConfigError."""

    def read(self, path: str) -> bytes:
        """The bytes of one file, at most limits.POLICY_FILE."""
        ...

    def names(self, path: str) -> list[str]:
        """The names of the regular files in one directory, sorted, at most limits.TRUST_STORE_FILES."""
        ...


def parse_requirement(fields: Fields, files: Files) -> Requirement:
    """One requirement object.

    Raises:
        ConfigError: an unknown type, an unknown or missing key, a file that can't be used.
    """
    try:
        requirement = _parse(fields.text("type"), fields, files)
    except Refused as error:  # keys and certificates are read by the code that reads others' too
        raise ConfigError(f"{fields.where}: {error}") from error
    fields.only_asked()
    return requirement


def _parse(type_: str, fields: Fields, files: Files) -> Requirement:
    match type_:
        case "insecureAcceptAnything":
            return AcceptAnything()
        case "reject":
            return Reject()
        case "sigstoreSigned":
            trust = _simple_trust(fields, files)
            return SimpleSigned(trust, parse_signed_identity(fields.optional_object("signedIdentity")), type_)
        case "signedBy":
            return _signed_by(fields, files)
        case "p2pdist.sigstoreSimpleKeyless":
            keyless = _keyless(fields, files)
            return SimpleSigned(keyless, parse_signed_identity(fields.optional_object("signedIdentity")), type_)
        case "p2pdist.sigstoreBundle":
            predicate = fields.optional_text("predicateType") or COSIGN_SIGN
            return BundleSigned(_bundle_trust(fields, files), predicate, (), type_, frozenset({Form.BUNDLE}))
        case "p2pdist.attestation":
            return _attestation(fields, files, type_)
        case "p2pdist.notation":
            return NotationSigned(_notation(fields, files))
        case _:
            fields.fail(f"unknown requirement type {type_[:80]!r}")


# --- keys and certificates ----------------------------------------------------------------------------------------


def _sources(fields: Fields, files: Files, *names: str) -> list[tuple[bytes, str]]:
    """The bytes of the one of `names` that is there, with what to call them; none: an empty list."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        fields.fail(f"only one of {', '.join(given)} may be given")
    if not given:
        return []
    name = given[0]
    if name.endswith("Path"):
        path = fields.text(name)
        return [(files.read(path), path)]
    if name.endswith("Paths"):
        return [(files.read(path), path) for path in fields.texts(name)]
    texts = fields.texts(name) if name.endswith("Datas") else (fields.text(name),)
    return [(encodings.base64_bytes(text, f"{fields.where}.{name}"), f"{name}") for text in texts]


def _keys(fields: Fields, files: Files, stem: str) -> tuple[TrustedKey, ...]:
    names = (f"{stem}Path", f"{stem}Paths", f"{stem}Data", f"{stem}Datas")
    return tuple(TrustedKey.from_pem(data, origin) for data, origin in _sources(fields, files, *names))


def _certificates(fields: Fields, files: Files, stem: str) -> tuple[x509.Certificate, ...]:
    loaded: list[x509.Certificate] = []
    for data, origin in _sources(fields, files, f"{stem}Path", f"{stem}Data"):
        with refusing(origin):
            loaded += x509.load_pem_x509_certificates(data)
    return tuple(loaded)


def _simple_trust(fields: Fields, files: Files) -> SimpleTrust:
    by_key = _keys(fields, files, "key")
    fulcio, pki = fields.optional_object("fulcio"), fields.optional_object("pki")
    log_keys = _keys(fields, files, "rekorPublicKey")
    if bool(by_key) + (fulcio is not None) + (pki is not None) != 1:
        fields.fail("exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki must be given")
    if fulcio is not None:
        if not log_keys:
            fields.fail("fulcio needs one of rekorPublicKeyPath, rekorPublicKeyPaths, rekorPublicKeyData(s)")
        roots = _certificates(fulcio, files, "ca")
        if not roots:
            fulcio.fail("one of caPath and caData must be given")
        issuer, email = fulcio.text("oidcIssuer"), fulcio.text("subjectEmail")
        fulcio.only_asked()
        return FulcioTrust(tuple(Authority(root, ()) for root in roots), issuer, email, log_keys)
    if pki is not None:
        if log_keys:
            fields.fail("rekorPublicKey... can't be given with pki")
        return _pki(pki, files)
    return KeyTrust(by_key, log_keys)


def _pki(pki: Fields, files: Files) -> PkiTrust:
    roots = _certificates(pki, files, "caRoots")
    intermediates = _certificates(pki, files, "caIntermediates")
    email, hostname = pki.optional_text("subjectEmail"), pki.optional_text("subjectHostname")
    if not roots or (email is None and hostname is None):
        pki.fail("caRootsPath or caRootsData, and subjectEmail or subjectHostname, must be given")
    pki.only_asked()
    return PkiTrust(tuple(Authority(root, intermediates) for root in roots), email, hostname)


def _keyless(fields: Fields, files: Files) -> KeylessTrust:
    sources = _sources(fields, files, "trustedRootPath", "trustedRootData")
    if not sources:
        fields.fail("one of trustedRootPath and trustedRootData must be given")
    root = parse_trusted_root(*sources[0])
    identity = fields.object("identity")
    wanted = Identity(identity.text("subject"), identity.text("issuer"))
    identity.only_asked()
    return KeylessTrust(root, wanted)


def _bundle_trust(fields: Fields, files: Files) -> tuple[TrustedKey, ...] | KeylessTrust:
    by_key = _keys(fields, files, "key")
    by_identity = "identity" in fields or "trustedRootPath" in fields or "trustedRootData" in fields
    if bool(by_key) == by_identity:
        fields.fail("give either a key (keyPath, keyPaths, keyData, keyDatas), or trustedRootPath and identity")
    return by_key or _keyless(fields, files)


def _signed_by(fields: Fields, files: Files) -> GpgSigned:
    if fields.text("keyType") != "GPGKeys":
        fields.fail(f"keyType {fields.text('keyType')[:40]!r} is not supported; GPGKeys is")
    sources = _sources(fields, files, "keyPath", "keyPaths", "keyData")
    if not sources:
        fields.fail("exactly one of keyPath, keyPaths and keyData must be given")
    keyring = b"".join(dearmored(data, origin) for data, origin in sources)
    if not keyring:
        fields.fail("the keyring is empty")
    origin = ", ".join(origin for _, origin in sources)
    return GpgSigned(keyring, origin, parse_signed_identity(fields.optional_object("signedIdentity")))


# --- own types ----------------------------------------------------------------------------------------------------


def _attestation(fields: Fields, files: Files, type_: str) -> BundleSigned:
    trust, predicate = _bundle_trust(fields, files), fields.text("predicateType")
    if predicate == COSIGN_SIGN:
        fields.fail("predicateType is that of a signature; p2pdist.sigstoreBundle asks for one")
    conditions = []
    for number, item in enumerate(fields.items("conditions") if "conditions" in fields else []):
        condition = Fields(item, f"{fields.where}.conditions[{number}]", ConfigError)
        pointer, value = condition.text("pointer"), condition.raw("equals")
        if re.fullmatch(r"(?:/(?:[^~/]|~[01])*)+", pointer) is None:
            condition.fail(f"pointer {pointer[:80]!r} is not a JSON pointer, as in /scanner/result")
        if "equals" not in condition or not isinstance(value, str | int | float | bool | None):
            condition.fail("equals must be text, a number, true, false or null")
        condition.only_asked()
        conditions.append(Condition(pointer, value))
    forms = {Form.BUNDLE} if isinstance(trust, KeylessTrust) else {Form.BUNDLE, Form.DSSE}
    return BundleSigned(trust, predicate, tuple(conditions), type_, frozenset(forms))


def _notation(fields: Fields, files: Files) -> TrustPolicy:
    base = fields.text("trustStorePath").rstrip("/")

    def stores(type_: str, name: str) -> tuple[x509.Certificate, ...]:
        return _trust_store(f"{base}/x509/{type_}/{name}", files)

    path = fields.optional_text("trustPolicyPath")
    if path is not None:
        return parse_trust_policy(files.read(path), path, stores)
    verification = fields.optional_object("signatureVerification")
    statement: Statement = judged("policy", ("*",), fields, verification, stores)
    return TrustPolicy((statement,), fields.where)


def _trust_store(path: str, files: Files) -> tuple[x509.Certificate, ...]:
    loaded: list[x509.Certificate] = []
    for name in files.names(path):
        data = files.read(f"{path}/{name}")
        with refusing(f"{path}/{name}"):
            if b"-----BEGIN" in data:
                loaded += x509.load_pem_x509_certificates(data)
            else:
                loaded.append(x509.load_der_x509_certificate(data))
    if not loaded:
        raise ConfigError(f"the trust store {path} holds no certificates")
    for certificate in loaded:
        _check_trusted(certificate, path)
    return tuple(loaded)


def _check_trusted(certificate: x509.Certificate, path: str) -> None:
    # trust-store-trust-policy.md: a trust store holds authorities and self-signed signing certificates, no other leaf.
    with refusing(path):
        try:
            if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                return
        except x509.ExtensionNotFound:
            pass
        if certificate.issuer == certificate.subject:
            return
    raise ConfigError(f"{path}: {certificate.subject.rfc4514_string()} is neither an authority nor self-signed")
