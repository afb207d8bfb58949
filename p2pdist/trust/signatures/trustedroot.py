"""Sigstore's trusted_root.json (protobuf-specs, sigstore_trustroot.proto) as a TrustRoot. The operator's file."""

from __future__ import annotations

from datetime import datetime

from p2pdist.errors import ConfigError
from p2pdist.trust import encodings, keys, limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.certificates import Authority, Log, load_der
from p2pdist.trust.signatures.keyless import TrustRoot

_MEDIA_TYPES = (
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.1+json",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
)


def parse_trusted_root(raw: bytes, origin: str) -> TrustRoot:
    """The trust root in `raw`; `origin` names the file in messages.

    Unknown keys are let be: the file is sigstore's, and newer ones hold what isn't used here.

    Raises:
        ConfigError: malformed, or without a certificate authority, a log or a certificate transparency log.
    """
    try:
        return _parse(raw, origin)
    except Refused as error:
        raise ConfigError(f"{origin}: {error}") from error


def _parse(raw: bytes, origin: str) -> TrustRoot:
    fields = Fields.parse(raw, limits.POLICY_FILE, origin, ConfigError, None)
    media_type = fields.text("mediaType")
    if media_type not in _MEDIA_TYPES:
        fields.fail(f"mediaType {media_type[:80]!r} is not a trusted root's")
    authorities = tuple(
        _authority(Fields(item, f"{origin}: certificateAuthorities[{number}]", ConfigError))
        for number, item in enumerate(fields.items("certificateAuthorities"))
    )
    logs, ct_logs = _logs(fields, "tlogs"), _logs(fields, "ctlogs")
    if not authorities or not logs or not ct_logs:
        fields.fail("certificateAuthorities, tlogs and ctlogs must each hold at least one")
    return TrustRoot(authorities, logs, ct_logs, origin)


def _authority(fields: Fields) -> Authority:
    chain = []
    for item in fields.object("certChain").items("certificates"):
        raw = Fields(item, f"{fields.where}.certificates", ConfigError).text("rawBytes")
        chain.append(load_der(encodings.base64_bytes(raw, fields.where), fields.where))
    if not 1 <= len(chain) <= limits.CERTIFICATES:
        fields.fail(f"a chain of {len(chain)} certificates; 1 to {limits.CERTIFICATES} are taken")
    start, end = _window(fields)
    return Authority(chain[-1], tuple(chain[:-1]), start, end)


def _logs(fields: Fields, name: str) -> tuple[Log, ...]:
    logs = []
    for number, item in enumerate(fields.items(name)):
        log = Fields(item, f"{fields.where}: {name}[{number}]", ConfigError)
        public = log.object("publicKey")
        key = keys.TrustedKey.from_der(encodings.base64_bytes(public.text("rawBytes"), log.where), log.where)
        log_id = encodings.base64_bytes(log.object("logId").text("keyId"), log.where)
        start, end = _window(public)
        logs.append(Log(log_id, key, start, end))
    return tuple(logs)


def _window(fields: Fields) -> tuple[datetime | None, datetime | None]:
    window = fields.optional_object("validFor")
    if window is None:
        return None, None
    start, end = window.optional_text("start"), window.optional_text("end")
    return (
        None if start is None else encodings.time_rfc3339(start, window.where),
        None if end is None else encodings.time_rfc3339(end, window.where),
    )
