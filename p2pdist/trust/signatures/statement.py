"""in-toto statements in DSSE envelopes: what a sigstore bundle signs (in-toto attestation spec v1; DSSE v1.0.2)."""

from __future__ import annotations

from dataclasses import dataclass

from p2pdist.errors import InvalidDigest
from p2pdist.oci import Digest
from p2pdist.trust import encodings, limits
from p2pdist.trust.fields import Fields, kind
from p2pdist.trust.refusal import Refused, shown

PAYLOAD_TYPE = "application/vnd.in-toto+json"
COSIGN_SIGN = "https://sigstore.dev/cosign/sign/v1"
STATEMENT_V1 = "https://in-toto.io/Statement/v1"
STATEMENT_V01 = "https://in-toto.io/Statement/v0.1"  # what cosign attest wrote for years


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope with exactly one signature; `payload` is the decoded text that was signed."""

    payload_type: str
    payload: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """What the signature is over: DSSE's pre-authentication encoding."""
        kind_ = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind_), kind_, len(self.payload), self.payload)


@dataclass(frozen=True, slots=True)
class Condition:
    """A value that the predicate must have at a JSON pointer (RFC 6901): text, number, boolean or null."""

    pointer: str
    equals: object

    def __str__(self) -> str:
        return f"{self.pointer} = {self.equals!r}"


def parse_envelope(fields: Fields) -> Envelope:
    """The envelope in `fields`; Refused unless it is of an in-toto statement and has one signature.

    sigstore_bundle.proto, `dsse_envelope`: a client must reject any other number of signatures.
    """
    payload_type = fields.text("payloadType")
    if payload_type != PAYLOAD_TYPE:
        fields.fail(f"payloadType is {shown(payload_type)}, wanted {PAYLOAD_TYPE}")
    payload = encodings.base64_bytes(fields.text("payload"), f"{fields.where}.payload")
    found = fields.items("signatures")
    if len(found) != 1:
        fields.fail(f"{len(found)} signatures, wanted exactly 1")
    one = Fields(found[0], f"{fields.where}.signatures[0]", Refused)
    return Envelope(payload_type, payload, encodings.base64_bytes(one.text("sig"), f"{one.where}.sig"))


def check_statement(payload: bytes, manifest: bytes, predicate_type: str, conditions: tuple[Condition, ...]) -> Digest:
    """The digest under which the statement names `manifest` (the image's bytes).

    Raises:
        Refused: not a statement, of another image, of another predicate type, or a condition isn't met.
    """
    fields = Fields.parse(payload, limits.ENVELOPE, "statement", Refused, None)  # signed: an SBOM is long
    # A signature is always a v1 statement; older attestations are v0.1 and say the same in the same fields.
    types = (STATEMENT_V1,) if predicate_type == COSIGN_SIGN else (STATEMENT_V1, STATEMENT_V01)
    if fields.text("_type") not in types:
        fields.fail(f"_type is {shown(fields.text('_type'))}, wanted {STATEMENT_V1}")
    got = fields.text("predicateType")
    if got != predicate_type:
        fields.fail(f"predicateType is {shown(got)}, wanted {predicate_type}")
    digest = _subject(fields, manifest)
    for condition in conditions:
        _check(fields.raw("predicate"), condition)
    return digest


def _subject(fields: Fields, manifest: bytes) -> Digest:
    found = fields.items("subject")
    if len(found) > limits.SUBJECTS:
        fields.fail(f"{len(found)} subjects; at most {limits.SUBJECTS} are taken")
    named = []
    for number, item in enumerate(found):
        digests = Fields(item, f"statement.subject[{number}]", Refused).object("digest")
        for algorithm in ("sha256", "sha512"):
            if algorithm not in digests:
                continue
            try:
                digest = Digest(algorithm, digests.text(algorithm))
            except InvalidDigest as error:
                raise Refused(f"{digests.where}: {error}") from error
            if digest == Digest.of(manifest, algorithm):
                return digest
            named.append(str(digest))
    raise Refused(f"the statement is of another image ({', '.join(named[:2]) or 'no digest'})")


def _check(predicate: object, condition: Condition) -> None:
    value = predicate
    for token in condition.pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(value):
            value = value[int(key)]
        else:
            raise Refused(f"the predicate has nothing at {condition.pointer}")
    # In Python True == 1 and 1 == 1.0; in the policy they are different answers.
    if type(value) is not type(condition.equals) or value != condition.equals:
        raise Refused(f"the predicate has {shown(kind(value))} at {condition.pointer}, wanted {condition.equals!r}")
