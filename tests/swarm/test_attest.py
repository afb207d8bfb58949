"""An attestation is believed only if a current member of this cluster signed just this chunk of just this blob."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pdist.errors import ProtocolError
from p2pdist.protocol.attest import membership_bytes
from p2pdist.protocol.messages import Attestation, Membership
from p2pdist.swarm.attest import Attestor, from_header, pack, to_header, unpack

BLOB = "sha256:" + "a" * 64
SHA = hashlib.sha256(b"chunk").digest()
NOW = 1000.0


def member(cluster: Ed25519PrivateKey, expires: int = 2000) -> Attestor:
    attestor = Attestor(Ed25519PrivateKey.generate())
    signature = cluster.sign(membership_bytes(attestor.node, expires))
    attestor.join(Membership(attestor.node, expires, signature), cluster.public_key().public_bytes_raw())
    return attestor


@pytest.fixture
def cluster() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def statement(cluster: Ed25519PrivateKey) -> Attestation:
    made = member(cluster).sign(BLOB, 65536, 3, SHA)
    assert made is not None
    return made


@pytest.fixture
def judge(cluster: Ed25519PrivateKey) -> Attestor:
    return member(cluster)


def test_a_members_statement_is_believed(judge: Attestor, statement: Attestation) -> None:
    assert judge.fault(from_header(to_header(pack(statement))), BLOB, 65536, 3, NOW) is None


@pytest.mark.parametrize(
    ("blob", "chunk_size", "index"), [("sha256:" + "b" * 64, 65536, 3), (BLOB, 131072, 3), (BLOB, 65536, 4)]
)
def test_a_statement_about_another_chunk_is_replayed_in_vain(
    judge: Attestor, statement: Attestation, blob: str, chunk_size: int, index: int
) -> None:
    assert judge.fault(statement, blob, chunk_size, index, NOW) == "its signature is wrong"


def test_another_hash_under_the_same_signature_is_refused(judge: Attestor, statement: Attestation) -> None:
    forged = Attestation(bytes(32), statement.signer, statement.signature)
    assert judge.fault(forged, BLOB, 65536, 3, NOW) == "its signature is wrong"


def test_a_member_of_another_cluster_is_refused(judge: Attestor) -> None:
    foreign = member(Ed25519PrivateKey.generate()).sign(BLOB, 65536, 3, SHA)
    assert foreign is not None
    assert "not a member" in (judge.fault(foreign, BLOB, 65536, 3, NOW) or "")


def test_a_membership_lent_to_another_key_is_refused(judge: Attestor, statement: Attestation) -> None:
    thief = Attestor(Ed25519PrivateKey.generate())
    lent = Membership(thief.node, statement.signer.expires, statement.signer.signature)
    thief.join(lent, judge.cluster_key or b"")
    forged = thief.sign(BLOB, 65536, 3, SHA)
    assert forged is not None
    assert "not a member" in (judge.fault(forged, BLOB, 65536, 3, NOW) or "")


def test_an_expired_membership_is_refused_even_if_it_was_believed_before(
    judge: Attestor, statement: Attestation
) -> None:
    assert judge.fault(statement, BLOB, 65536, 3, NOW) is None
    assert "expired" in (judge.fault(statement, BLOB, 65536, 3, 2000.0) or "")


def test_a_banned_signer_is_refused_until_the_ban_ends(judge: Attestor, statement: Attestation) -> None:
    judge.ban(statement.signer.node, 1500.0)
    assert "banned" in (judge.fault(statement, BLOB, 65536, 3, NOW) or "")
    assert judge.fault(statement, BLOB, 65536, 3, 1500.0) is None


def test_who_is_no_member_signs_nothing() -> None:
    assert Attestor(Ed25519PrivateKey.generate()).sign(BLOB, 65536, 3, SHA) is None


@given(st.text(max_size=300))
def test_any_header_is_an_attestation_or_an_error(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        from_header(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_attestation_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack(data)
