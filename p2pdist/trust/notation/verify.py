"""Whether one notation signature counts for one image, by a statement of a trust policy.

A check that the statement only logs may fail; what failed is then said beside the verdict. Two checks can't be done
here, offline: a timestamp authority's countersignature, and revocation. Where a statement enforces one of them and a
signature needs it, the signature is refused rather than half checked.
"""

from __future__ import annotations

from datetime import datetime

from p2pdist.errors import InvalidDigest
from p2pdist.oci import Digest
from p2pdist.trust import limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.notation import chain as chains
from p2pdist.trust.notation.cose import MEDIA_TYPE as COSE
from p2pdist.trust.notation.cose import open_cose
from p2pdist.trust.notation.envelope import SCHEME_X509, Content
from p2pdist.trust.notation.jws import MEDIA_TYPE as JWS
from p2pdist.trust.notation.jws import open_jws
from p2pdist.trust.notation.names import certificate_name, covers
from p2pdist.trust.notation.trustpolicy import Action, Check, Statement
from p2pdist.trust.refusal import Refused, shown
from p2pdist.trust.signatures.bundle import Signed

ARTIFACT_TYPE = "application/vnd.cncf.notary.signature"
ENVELOPE_TYPES = {JWS: open_jws, COSE: open_cose}


def verify_notation(
    raw: bytes, envelope_type: str, manifest: bytes, media_type: str, statement: Statement, now: datetime
) -> Signed:
    """Who signed `manifest`, the bytes of an image served as `media_type`, by the envelope `raw`.

    Args:
        raw: the envelope.
        envelope_type: the media type of its blob.
        manifest: the image's manifest or index.
        media_type: under which the registry serves it: part of what is signed.
        statement: one that doesn't skip verification.
        now: when it is judged.

    Raises:
        Refused: a check failed that the statement enforces.
    """
    if envelope_type not in ENVELOPE_TYPES:
        raise Refused(f"envelope of the unknown type {shown(envelope_type)}")
    content = ENVELOPE_TYPES[envelope_type](raw)
    chains.check_chain(content.chain)
    digest = _check_target(content.payload, manifest, media_type)
    logged: list[str] = []
    for check, judge in (
        (Check.AUTHENTICITY, _authenticity),
        (Check.EXPIRY, _expiry),
        (Check.TIMESTAMP, _timestamp),
        (Check.REVOCATION, _revocation),
    ):
        action = statement.actions[check]
        if action is Action.SKIP:
            continue
        try:
            judge(content, statement, now)
        except Refused as error:
            if action is Action.ENFORCE:
                raise
            logged.append(f"{check}: {error}")
    method = f"notation {content.algorithm}" + "".join(f"; not enforced: {failed}" for failed in logged)
    return Signed(chains.name(content.chain[0]), method, digest, None, _expires(content, statement, now))


def _check_target(payload: bytes, manifest: bytes, media_type: str) -> Digest:
    target = Fields.parse(payload, limits.PAYLOAD, "payload", Refused).object("targetArtifact")
    try:
        digest = Digest.parse(target.text("digest"))
    except InvalidDigest as error:
        raise Refused(f"payload: {error}") from error
    if digest != Digest.of(manifest, digest.algorithm):
        raise Refused(f"it is a signature of another image, {digest}")
    if target.number("size") != len(manifest):
        target.fail(f"size is {target.number('size')}, the image's manifest has {len(manifest)}")
    if target.text("mediaType") != media_type:
        target.fail(f"mediaType is {shown(target.text('mediaType'))}, the image is served as {media_type}")
    return digest


def _authenticity(content: Content, statement: Statement, now: datetime) -> None:
    type_ = "ca" if content.scheme == SCHEME_X509 else "signingAuthority"
    trusted = statement.stores.get(type_, ())
    if not any(certificate in trusted for certificate in content.chain):
        raise Refused(f"no certificate of its chain is in a trust store of type {type_}")
    if statement.identities is None:
        return
    subject = certificate_name(content.chain[0])
    if not any(covers(identity, subject) for identity in statement.identities):
        raise Refused(f"signed by {chains.name(content.chain[0])}, which is not a trusted identity")


def _expiry(content: Content, statement: Statement, now: datetime) -> None:
    if content.expiry is not None and now >= content.expiry:
        raise Refused(f"the signature expired at {content.expiry:%FT%TZ}")


def _timestamp(content: Content, statement: Statement, now: datetime) -> None:
    if content.scheme == SCHEME_X509:
        at, what = now, "now"
        if statement.timestamps == "always":
            raise Refused("the policy asks for a timestamp authority's countersignature, which is not verified here")
    else:
        at, what = content.signed_at, "when it was signed"
    for certificate in content.chain:
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise Refused(f"the certificate {chains.name(certificate)} is not valid {what}")


def _revocation(content: Content, statement: Statement, now: datetime) -> None:
    asked = chains.revocable(content.chain)
    if asked is not None:
        raise Refused(f"whether {asked} is revoked can't be asked here, offline; override revocation with log or skip")


def _expires(content: Content, statement: Statement, now: datetime) -> datetime | None:
    ends = []
    if content.expiry is not None and statement.actions[Check.EXPIRY] is Action.ENFORCE:
        ends.append(content.expiry)
    if content.scheme == SCHEME_X509 and statement.actions[Check.TIMESTAMP] is Action.ENFORCE:
        ends += [certificate.not_valid_after_utc for certificate in content.chain]
    return min(ends, default=None)
