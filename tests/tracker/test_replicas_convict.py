"""A liar is convicted whichever replicas of the tracker it and its accuser have their sessions with."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

from replica_kit import Agent, Replicas, until

from p2pdist.protocol import messages as wire
from p2pdist.protocol.attest import attestation_bytes
from tracker.state import open_state
from tracker.tokens import Facts
from tracker.trials import Proof

CHUNK = 64 * 1024
DATA = random.Random(1).randbytes(40 * CHUNK + 77)  # three pieces
NAME = "sha256:" + hashlib.sha256(DATA).hexdigest()


def lie_of(agent: Agent) -> wire.Attestation:
    sha256 = bytes(32)
    membership = agent.got(wire.Welcome)[-1].membership
    return wire.Attestation(sha256, membership, agent.key.sign(attestation_bytes(NAME, CHUNK, 7, sha256)))


async def test_proof_goes_through_a_follower_and_outlives_the_leader(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as replicas:
        leader, follower = await replicas.start(), await replicas.start()
        accuser, liar = await replicas.agent(follower), await replicas.agent(leader)
        accuser.say(wire.Convict(NAME, len(DATA), CHUNK, 7, lie_of(liar)))
        for piece in range(3):
            asked = await accuser.hears(wire.Show, piece + 1)
            accuser.say(wire.Shown(NAME, asked.offset, DATA[asked.offset : asked.offset + asked.length]))
        assert "banned" in (await liar.hears(wire.Rejected)).reason
        assert (await accuser.hears(wire.Banned)).node == liar.node
        state = open_state(replicas.redis.url)

        async def kept() -> bool:
            ban = (await Facts(state).bans()).get(liar.node)
            return ban is not None and Proof.unpack(ban.evidence).holds(leader.cluster_key)

        while not await kept():
            pass
        await replicas.stop(leader)
        await until(lambda: follower.leading is not None)
        sentence = follower.leading.cluster.bans.sentence(time.time(), liar.node)
        assert Proof.unpack(sentence.evidence).truth == hashlib.sha256(DATA[7 * CHUNK : 8 * CHUNK]).digest()
        await state.close()
