"""A false statement is proved with the blob itself; what can't be proved costs the accuser its voice."""

from __future__ import annotations

import hashlib
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tracker_driver import CHUNK, Driver, node_id, of

from p2pdist.protocol import limits
from p2pdist.protocol import messages as wire
from p2pdist.protocol.attest import attestation_bytes, membership_bytes
from p2pdist.protocol.chunks import chunk_range
from p2pdist.protocol.messages import PeerInfo
from tracker.rules import BanRules
from tracker.trials import MOST_TRIALS, PATIENCE, TRIALS_OF_ONE, Proof

DATA = random.Random(1).randbytes(40 * CHUNK + 77)  # three pieces
NAME = "sha256:" + hashlib.sha256(DATA).hexdigest()


class Signer:
    """A member that signs what it likes; node number 1 of the driver."""

    def __init__(self, driver: Driver, authority: Ed25519PrivateKey | None = None) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.node = self.key.public_key().public_bytes_raw()
        signature = (authority or driver.authority).sign(membership_bytes(self.node, 1))
        self.membership = wire.Membership(self.node, 1, signature)
        driver._take(driver.cluster.connected(driver.now, PeerInfo(self.node, "liar", 7000), "liar"))

    def says(self, index: int, sha256: bytes, name: str = NAME, chunk_size: int = CHUNK) -> wire.Attestation:
        return wire.Attestation(
            sha256, self.membership, self.key.sign(attestation_bytes(name, chunk_size, index, sha256))
        )


def true(index: int) -> bytes:
    start, end = chunk_range(index, len(DATA), CHUNK)
    return hashlib.sha256(DATA[start:end]).digest()


def charge(statement: wire.Attestation, index: int = 7, other: wire.Attestation | None = None) -> wire.Convict:
    return wire.Convict(NAME, len(DATA), CHUNK, index, statement, other)


def show(driver: Driver, number: int, said, data: bytes = DATA):
    """Answer what is asked of the node until nothing more is."""
    while True:
        asked = [message for who, message in of(said, wire.Show) if who == number]
        if not asked:
            return said
        assert len(asked) == 1 and asked[0].length <= limits.PIECE_SHOWN
        piece = data[asked[0].offset : asked[0].offset + asked[0].length]
        said = driver.say(number, wire.Shown(asked[0].digest, asked[0].offset, piece))


@pytest.mark.parametrize("index", [0, 7, 15, 16, 39, 40])
def test_one_accuser_that_shows_the_blob_gets_the_liar_banned_with_its_own_signature(index: int) -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2, 3)
    said = show(driver, 2, driver.say(2, charge(liar.says(index, b"\0" * 32), index)))
    assert {number for number, message in of(said, wire.Banned) if message.node == liar.node} == {2, 3}
    sentence = driver.cluster.bans.sentence(driver.now, liar.node)
    assert sentence is not None and sentence.until == driver.now + BanRules().proved_ban_time
    proof = Proof.unpack(sentence.evidence)
    assert proof.holds(driver.authority.public_key().public_bytes_raw())
    assert (proof.truth, proof.statement.sha256, proof.index) == (true(index), b"\0" * 32, index)
    assert true(index).hex() in str(proof) and proof.statement.signature.hex() in str(proof)


def test_no_number_of_accusers_gets_a_node_banned_for_what_is_true() -> None:
    driver = Driver()
    honest = Signer(driver)
    driver.connect(*range(2, 40))
    for number in range(2, 40):
        show(driver, number, driver.say(number, charge(honest.says(7, true(7)))))
    assert driver.cluster.banned(driver.now, honest.node) is None
    assert driver.cluster.trials.failed == 38
    for number in range(2, 40):  # and what they say without proof isn't heard any more
        assert driver.say(number, wire.Accuse(honest.node, NAME, 7)) == []
    assert driver.cluster.banned(driver.now, honest.node) is None
    driver.later(601.0)
    assert driver.cluster.bans.admits(driver.now, node_id(2), honest.node)


def test_other_bytes_than_the_digests_prove_nothing() -> None:
    driver = Driver()
    honest = Signer(driver)
    driver.connect(2)
    forged = bytearray(DATA)
    forged[7 * CHUNK] ^= 1
    show(driver, 2, driver.say(2, charge(honest.says(7, true(7)))), bytes(forged))
    assert driver.cluster.banned(driver.now, honest.node) is None
    assert driver.say(2, charge(honest.says(7, true(7)))) == []


@pytest.mark.parametrize("what", ["signature", "digest", "chunk", "size", "foreign"])
def test_a_statement_that_its_signer_did_not_make_is_no_charge(what: str) -> None:
    driver = Driver()
    honest = Signer(driver, Ed25519PrivateKey.generate() if what == "foreign" else None)
    driver.connect(2)
    lie = honest.says(7, b"\0" * 32)
    message = {
        "signature": charge(wire.Attestation(b"\1" * 32, lie.signer, lie.signature)),
        "digest": wire.Convict("sha256:" + "a" * 64, len(DATA), CHUNK, 7, lie),
        "chunk": charge(lie, 8),
        "size": wire.Convict(NAME, len(DATA), 2 * CHUNK, 7, lie),
        "foreign": charge(lie),
    }[what]
    assert driver.say(2, message) == []
    assert driver.cluster.banned(driver.now, honest.node) is None
    assert driver.cluster.trials.failed == 1


def test_chunks_that_no_blob_can_have_are_no_charge() -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2)
    for size, chunk_size, index in ((0, CHUNK, 0), (len(DATA), CHUNK + 1, 0), (len(DATA), CHUNK, 41)):
        statement = liar.says(index, b"\0" * 32, chunk_size=chunk_size)
        assert driver.say(2, wire.Convict(NAME, size, chunk_size, index, statement)) == []
    for name in ("sha256:abc", "md5:" + "a" * 32):
        assert driver.say(2, wire.Convict(name, len(DATA), CHUNK, 0, liar.says(0, b"\0" * 32, name))) == []


def test_two_statements_of_one_chunk_by_one_signer_are_proof_by_themselves() -> None:
    driver = Driver()
    liar, other = Signer(driver), Signer(driver)
    driver.connect(2, 3)
    assert driver.say(3, charge(liar.says(7, true(7)), other=other.says(7, b"\0" * 32))) == []  # two signers
    assert driver.say(2, charge(liar.says(7, true(7)), other=liar.says(7, b"\0" * 32)))
    sentence = driver.cluster.bans.sentence(driver.now, liar.node)
    assert sentence is not None
    assert Proof.unpack(sentence.evidence).holds(driver.authority.public_key().public_bytes_raw())
    assert driver.cluster.banned(driver.now, other.node) is None


def test_the_same_statement_twice_is_no_contradiction() -> None:
    driver = Driver()
    honest = Signer(driver)
    driver.connect(2)
    assert driver.say(2, charge(honest.says(7, true(7)), other=honest.says(7, true(7)))) == []
    assert driver.cluster.banned(driver.now, honest.node) is None


def test_of_a_blob_of_one_chunk_nothing_has_to_be_shown() -> None:
    driver = Driver()
    liar, honest = Signer(driver), Signer(driver)
    driver.connect(2, 3)
    small = hashlib.sha256(b"small")
    name = "sha256:" + small.hexdigest()
    assert driver.say(2, wire.Convict(name, 5, CHUNK, 0, liar.says(0, b"\0" * 32, name)))
    assert driver.cluster.banned(driver.now, liar.node) is not None
    assert driver.say(3, wire.Convict(name, 5, CHUNK, 0, honest.says(0, small.digest(), name))) == []
    assert driver.cluster.banned(driver.now, honest.node) is None


def test_a_silent_accuser_holds_nobody_up_and_loses_its_voice() -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2, 3, 4, 5)
    lie = liar.says(7, b"\0" * 32)
    asked = [number for number in (2, 3, 4) if of(driver.say(number, charge(lie)), wire.Show)]
    assert asked == [2, 3] and TRIALS_OF_ONE == 2  # friends of the liar's, who say nothing
    driver.later(PATIENCE + 0.1)
    show(driver, 4, [(4, message) for message in driver.take(4, wire.Show)])
    assert driver.cluster.banned(driver.now, liar.node) is not None
    assert not driver.cluster.bans.admits(driver.now, node_id(2), node_id(5))


def test_a_drip_of_bytes_is_not_listened_to_for_ever() -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2)
    size = 100 * 1024 * 1024
    name = "sha256:" + "a" * 64
    said = driver.say(2, wire.Convict(name, size, CHUNK, 0, liar.says(0, b"\0" * 32, name)))
    pieces = 0
    while asked := of(said, wire.Show):
        driver.later(PATIENCE - 1)
        pieces += 1
        said = driver.say(2, wire.Shown(name, asked[0][1].offset, b"\0" * asked[0][1].length))
    assert 10 < pieces < 70  # about 128 KiB a second: a slow link may be honest
    assert driver.cluster.bans.admits(driver.now, node_id(2), node_id(3))


def test_friends_of_a_liar_cannot_keep_others_from_proving_its_lie() -> None:
    """They charge it with lies about huge blobs, and show those slowly."""
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2, 3, 4)
    name = "sha256:" + "a" * 64
    asked = {}
    for number in (2, 3):
        said = driver.say(number, wire.Convict(name, 1 << 31, 16 << 20, 0, liar.says(0, b"\0" * 32, name, 16 << 20)))
        asked[number] = of(said, wire.Show)[0][1]
    assert of(driver.say(4, charge(liar.says(7, b"\0" * 32))), wire.Show) == []
    for _ in range(2):
        driver.later(PATIENCE / 2 + 1)
        for number, show_ in asked.items():
            said = driver.say(number, wire.Shown(name, show_.offset, bytes(show_.length)))
            asked |= {who: message for who, message in of(said, wire.Show) if who == number}
    show(driver, 4, [(4, message) for message in driver.take(4, wire.Show)])
    assert driver.cluster.banned(driver.now, liar.node) is not None


def test_an_accuser_that_has_the_blob_no_more_or_leaves_makes_room_for_the_next() -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2, 3, 4)
    lie = liar.says(7, b"\0" * 32)
    for number in (2, 3, 4):
        driver.say(number, charge(lie))
    driver.disconnect(2)
    (asked,) = driver.take(4, wire.Show)
    driver.say(3, wire.Shown(NAME, 0))
    assert driver.cluster.bans.admits(driver.now, node_id(3), node_id(9))  # it may be honest
    show(driver, 4, [(4, asked)])
    assert driver.cluster.banned(driver.now, liar.node) is not None


def test_what_nobody_asked_for_is_not_hashed() -> None:
    driver = Driver()
    liar = Signer(driver)
    driver.connect(2, 3)
    driver.say(2, charge(liar.says(7, b"\0" * 32)))
    assert driver.say(3, wire.Shown(NAME, 0, DATA[: 1 << 20])) == []
    assert driver.say(2, wire.Shown("sha256:" + "b" * 64, 0, DATA[: 1 << 20])) == []
    assert driver.cluster.trials.shown == 0
    driver.say(2, wire.Shown(NAME, 5, DATA[: 1 << 20]))
    assert driver.cluster.trials.shown == 0


def test_few_trials_run_at_once_however_many_accuse() -> None:
    driver = Driver()
    driver.connect(*range(2, 60))
    asked = sum(len(of(driver.say(n, charge(Signer(driver).says(7, b"\0" * 32))), wire.Show)) for n in range(2, 60))
    assert asked == MOST_TRIALS


def test_blobs_too_large_to_be_shown_are_a_matter_of_counting() -> None:
    driver = Driver(bans=BanRules(settle=0.0, proof_bytes=len(DATA) - 1))
    liar = Signer(driver)
    driver.connect(2, 3, 4)
    for number in (2, 3):
        assert driver.say(number, charge(liar.says(7, b"\0" * 32))) == []
    assert of(driver.say(4, charge(liar.says(7, b"\0" * 32))), wire.Rejected)
