"""Signing and checking attestations: who read a chunk from upstream, and what its sha256 is.

A receiver accepts a chunk only if its bytes match an attestation signed by a current member of the cluster
(design page on the swarm, "Attestations"). Checks are cached by signer; the clock is an argument.
"""

from __future__ import annotations

import base64
from collections import OrderedDict

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pdist.errors import ProtocolError
from p2pdist.protocol.attest import attestation_bytes, membership_bytes, signature_holds
from p2pdist.protocol.messages import Attestation, Membership

_KNOWN_MEMBERS = 20_000  # memberships remembered as checked; more than any cluster measured
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Attestation)


def pack(attestation: Attestation) -> bytes:
    """The stored form (about 205 bytes)."""
    return _encoder.encode(attestation)


def unpack(data: bytes) -> Attestation:
    """The reverse of `pack`; ProtocolError if it is not one."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not an attestation: {error}") from error


def to_header(packed: bytes) -> str:
    """The form in an HTTP header."""
    return base64.b64encode(packed).decode("ascii")


def from_header(text: str) -> Attestation:
    """The reverse of `to_header` of `pack`; ProtocolError if it is not one."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ProtocolError("an attestation header that is not base64") from error
    return unpack(data)


class Attestor:
    """Signs with this node's key and judges the statements of others.

    Until `join` gave it a membership it can sign nothing that another node would accept.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.node: bytes = key.public_key().public_bytes_raw()
        self.membership: Membership | None = None
        self.cluster_key: bytes | None = None
        self._members: OrderedDict[tuple[bytes, int, bytes], None] = OrderedDict()
        self._banned: dict[bytes, float] = {}

    def join(self, membership: Membership, cluster_key: bytes) -> None:
        """This node is a member of the cluster that signs with `cluster_key`."""
        if cluster_key != self.cluster_key:
            self._members.clear()
        self.cluster_key = cluster_key
        self.membership = membership

    def ban(self, node: bytes, until: float) -> None:
        """Refuse everything that `node` signed, until the Unix time `until`."""
        self._banned[node] = until

    def banned(self, node: bytes, now: float) -> bool:
        """Whether `node` is shut out at `now` (Unix seconds)."""
        until = self._banned.get(node)
        if until is not None and until <= now:
            del self._banned[node]
            return False
        return until is not None

    def believes(self, signer: Membership, now: float) -> bool:
        """Whether statements of `signer` count here at all: others may know it longer, or not know of its ban yet."""
        return self.cluster_key is not None and not self.banned(signer.node, now) and signer.expires > now

    def sign(self, digest: str, chunk_size: int, index: int, sha256: bytes) -> Attestation | None:
        """This node's statement; None while it is no member."""
        if self.membership is None:
            return None
        signature = self._key.sign(attestation_bytes(digest, chunk_size, index, sha256))
        return Attestation(sha256, self.membership, signature)

    def fault(self, attestation: Attestation, digest: str, chunk_size: int, index: int, now: float) -> str | None:
        """Why the statement can't be believed at `now` (Unix seconds), or None if it can."""
        signer = attestation.signer
        if self.cluster_key is None:
            return "this node is not a member of a cluster yet"
        if self.banned(signer.node, now):
            return "its signer is banned"
        if signer.expires <= now:
            return "its signer's membership has expired"
        member = (signer.node, signer.expires, signer.signature)
        if member not in self._members:
            signed = membership_bytes(signer.node, signer.expires)
            if not signature_holds(self.cluster_key, signer.signature, signed):
                return "its signer is not a member of this cluster"
            self._members[member] = None
            if len(self._members) > _KNOWN_MEMBERS:
                self._members.popitem(last=False)
        signed = attestation_bytes(digest, chunk_size, index, attestation.sha256)
        if not signature_holds(signer.node, attestation.signature, signed):
            return "its signature is wrong"
        return None
