"""What a Rekor transparency log says of a signature, checked offline.

Rules:
1. The time that counts is the log's `integratedTime`, and only under the log's own signature (the SET).
2. A sigstore bundle must also prove inclusion: Merkle path to a root, the root under a signed checkpoint.
3. The log's entry must name this very signature, this certificate or key, and the hash of this payload.

Rekor's API is its source (`pkg/types`); the path is RFC 6962 section 2.1.1, the checkpoint a C2SP signed note.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from p2pdist.trust import encodings, keys, limits
from p2pdist.trust.fields import Fields
from p2pdist.trust.refusal import Refused
from p2pdist.trust.signatures.certificates import Log

_HASHES = {"sha256": 32, "sha384": 48, "sha512": 64}
_NOTE_SIGNATURE = re.compile("\u2014 ([^ \\n]{1,255}) ([A-Za-z0-9+/=]{8,2048})\\n")
_MAX_PATH = 64  # a tree of 2**64 leaves


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry as it came. `body`: the canonicalised entry that the log signed and hashed."""

    body: bytes
    integrated_time: int
    log_index: int
    log_id: bytes


def verify_set(entry: Entry, signed_entry_timestamp: bytes, logs: Sequence[Log]) -> datetime:
    """When the log took the entry, by its signed entry timestamp; Refused unless one of `logs` signed it."""
    at = encodings.time_unix(entry.integrated_time, "the log's time")
    log = next((log for log in logs if log.log_id == entry.log_id), None)
    if log is None:
        raise Refused("transparency log: the entry is of a log that isn't trusted")
    if not log.in_use(at):
        raise Refused("transparency log: the log was not in use at that time")
    keys.verify(log.key.key, signed_entry_timestamp, _canonical(entry), "transparency log: signed entry timestamp")
    return at


def verify_set_any(entry: Entry, signed_entry_timestamp: bytes, trusted: tuple[keys.TrustedKey, ...]) -> datetime:
    """The same against bare keys, as containers-policy.json has them (`rekorPublicKey...`)."""
    keys.verify_any(trusted, signed_entry_timestamp, _canonical(entry), "transparency log: signed entry timestamp")
    return encodings.time_unix(entry.integrated_time, "the log's time")


def _canonical(entry: Entry) -> bytes:
    # RFC 8785 of an object whose values are ASCII texts and whole numbers is this.
    payload = {
        "body": base64.b64encode(entry.body).decode("ascii"),
        "integratedTime": entry.integrated_time,
        "logID": entry.log_id.hex(),
        "logIndex": entry.log_index,
    }
    return json.dumps(payload, separators=(",", ":"), sort_keys=True).encode("ascii")


# --- inclusion ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """A Merkle path and the signed note of the root it leads to."""

    log_index: int
    tree_size: int
    root_hash: bytes
    path: tuple[bytes, ...]
    checkpoint: str


def verify_inclusion(entry: Entry, proof: InclusionProof, logs: Sequence[Log]) -> None:
    """Refused unless the proof leads from the entry to a root that the entry's log signed."""
    if _root(entry.body, proof) != proof.root_hash:
        raise Refused("transparency log: the inclusion proof does not lead to its root")
    log = next((log for log in logs if log.log_id == entry.log_id), None)
    if log is None:
        raise Refused("transparency log: the entry is of a log that isn't trusted")
    _verify_checkpoint(proof, log)


def _root(body: bytes, proof: InclusionProof) -> bytes:
    index, size = proof.log_index, proof.tree_size
    if index >= size:
        raise Refused("transparency log: the entry's index is outside the tree")
    if len(proof.path) > _MAX_PATH:
        raise Refused("transparency log: the inclusion proof is too long")
    # RFC 9162 section 2.1.3.2, which states the verification that RFC 6962 leaves to the reader.
    node, last = index, size - 1
    value = hashlib.sha256(b"\x00" + body).digest()
    for sibling in proof.path:
        if last == 0:
            raise Refused("transparency log: the inclusion proof is too long")
        if node & 1 or node == last:
            value = hashlib.sha256(b"\x01" + sibling + value).digest()
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            value = hashlib.sha256(b"\x01" + value + sibling).digest()
        node, last = node >> 1, last >> 1
    if last != 0:
        raise Refused("transparency log: the inclusion proof is too short")
    return value


def _verify_checkpoint(proof: InclusionProof, log: Log) -> None:
    text, blank, signatures = proof.checkpoint.partition("\n\n")
    if not blank or len(proof.checkpoint) > limits.PAYLOAD:
        raise Refused("transparency log: the checkpoint is not a signed note")
    note = text + "\n"
    lines = note.split("\n")
    if len(lines) < 4 or not re.fullmatch(r"[0-9]{1,19}", lines[1]):
        raise Refused("transparency log: the checkpoint is malformed")
    root = encodings.base64_bytes(lines[2], "the checkpoint's root")
    if int(lines[1]) != proof.tree_size or root != proof.root_hash:
        raise Refused("transparency log: the checkpoint is of another tree")
    found = list(_NOTE_SIGNATURE.finditer(signatures))
    if "".join(match[0] for match in found) != signatures or not found:
        raise Refused("transparency log: the checkpoint's signatures are malformed")
    for match in found[: limits.SIGNATURES]:
        signature = encodings.base64_bytes(match[2], "the checkpoint's signature")
        if signature[:4] == log.log_id[:4]:
            keys.verify(log.key.key, signature[4:], note.encode(), "transparency log: checkpoint")
            return
    raise Refused("transparency log: the checkpoint is not signed by the entry's log")


# --- what the entry says ------------------------------------------------------------------------------------------


def check_hashedrekord(body: bytes, signature: bytes, signer: bytes, payload: bytes) -> None:
    """Refused unless the entry names `signature`, `signer` (DER of a certificate or key) and `payload`'s hash."""
    spec = _spec(body, "hashedrekord")
    named = spec.object("signature")
    if encodings.base64_bytes(named.text("content"), "the entry's signature") != signature:
        raise Refused("transparency log: the entry is of another signature")
    _same_signer(named.object("publicKey").text("content"), signer)
    _same_hash(spec.object("data").object("hash"), payload)


def check_dsse(body: bytes, signature: bytes, signer: bytes, payload: bytes) -> None:
    """The same for a DSSE envelope (kind `dsse`): its payload, its one signature, its signer."""
    spec = _spec(body, "dsse")
    named = spec.items("signatures")
    if len(named) != 1:
        raise Refused(f"transparency log: the entry has {len(named)} signatures, wanted 1")
    one = Fields(named[0], "transparency log: signature", Refused)
    if encodings.base64_bytes(one.text("signature"), "the entry's signature") != signature:
        raise Refused("transparency log: the entry is of another signature")
    _same_signer(one.text("verifier"), signer)
    _same_hash(spec.object("payloadHash"), payload)


def kind_of(body: bytes) -> tuple[str, str]:
    """The entry's kind and version."""
    entry = Fields.parse(body, limits.ENVELOPE, "transparency log entry", Refused)
    return entry.text("kind"), entry.text("apiVersion")


def _spec(body: bytes, wanted: str) -> Fields:
    entry = Fields.parse(body, limits.ENVELOPE, "transparency log entry", Refused)
    if (entry.text("kind"), entry.text("apiVersion")) != (wanted, "0.0.1"):
        entry.fail(f"kind {entry.text('kind')[:40]} {entry.text('apiVersion')[:20]}, wanted {wanted} 0.0.1")
    return entry.object("spec")


def _same_signer(text: str, signer: bytes) -> None:
    pem = encodings.base64_bytes(text, "the entry's signer")
    if encodings.pem_block(pem, ("CERTIFICATE", "PUBLIC KEY"), "the entry's signer") != signer:
        raise Refused("transparency log: the entry is of another signer")


def _same_hash(named: Fields, payload: bytes) -> None:
    algorithm = named.text("algorithm")
    if algorithm not in _HASHES:
        raise Refused("transparency log: the entry's hash is of an unknown algorithm")
    if named.text("value") != hashlib.new(algorithm, payload).hexdigest():
        raise Refused("transparency log: the entry is of another payload")
