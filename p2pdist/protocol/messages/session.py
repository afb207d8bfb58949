"""How a session begins, lives and ends, and who is in the cluster."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from p2pdist.protocol.messages.fields import Labels, Message, NodeId, Signature


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """The cluster's statement that `node` is a member until `expires` (Unix seconds), signed with the cluster key.

    Signed bytes: `protocol.attest.membership_bytes`.
    """

    node: NodeId
    expires: int
    signature: Signature


class PeerInfo(msgspec.Struct, frozen=True, array_like=True):
    """Where a peer is reached. `site`: of a gateway of another site than the receiver's, which is reached as one.

    `zone`: chunks are fetched from another zone than one's own only under leases; empty: it is in none.
    `blob`: what that gateway and the receiver carry between their sites.
    """

    node: NodeId
    host: str
    port: int
    site: str = ""
    zone: str = ""
    blob: str = ""


class Challenge(Message, frozen=True):
    """First message of the tracker."""

    version: int
    nonce: Annotated[bytes, Meta(min_length=16, max_length=64)]


class Hello(Message, frozen=True):
    """First message of an agent. `proof` signs `protocol.attest.hello_bytes(challenge nonce)` with the node's key."""

    version: int
    node: NodeId
    proof: Signature
    name: Annotated[str, Meta(max_length=255)]
    host: Annotated[str, Meta(max_length=255)]  # where peers reach this agent; empty: the address seen by the tracker
    port: Annotated[int, Meta(ge=1, le=65535)]
    labels: Labels = {}


class Welcome(Message, frozen=True):
    """The agent is a member. `cluster_key`: Ed25519 public key that signs memberships."""

    membership: Membership
    cluster_key: NodeId
    session_timeout: float  # seconds of silence after which the tracker drops the session
    nodes: int


class Rejected(Message, frozen=True):
    """The tracker refuses the session or a request; says why. The connection is closed after it."""

    reason: str


class Ping(Message, frozen=True):
    """Keeps the session alive; answered by Pong. Sent every third of Welcome.session_timeout."""


class Pong(Message, frozen=True):
    """Answer to Ping."""

    nodes: int


class Banned(Message, frozen=True):
    """This peer is shut out of the cluster: drop its links, refuse its chunks and attestations."""

    node: NodeId
    until: int


class Dead(Message, frozen=True):
    """A transfer from `peer` was silent for too long and its link was dropped."""

    peer: NodeId
